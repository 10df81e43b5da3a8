"""The vocabulary as GGUF keeps it, and the proof that its ids are right."""
