"""The commands `slm rag ...`, a file each."""
