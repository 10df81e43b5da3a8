"""What computes: everything here runs in the engine's child process (`python -m serve.child.worker`)."""
