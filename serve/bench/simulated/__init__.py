"""Many machines: a simulation of them, and the runs on one that it is built on."""
