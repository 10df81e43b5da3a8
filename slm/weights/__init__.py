"""Files of weights: what a checkpoint folder holds, GGUF headers, which weights they are."""
