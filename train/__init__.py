"""Training: LoRA and SFT adapters, merging, evaluation. It knows nothing of GGUF, serving or retrieval."""
