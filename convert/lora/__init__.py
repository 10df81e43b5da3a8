"""PEFT adapters -> adapter GGUF."""
