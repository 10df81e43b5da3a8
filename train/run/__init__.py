"""The training loop, and an adapter's run through it: its steps, measurements and checkpoints."""
