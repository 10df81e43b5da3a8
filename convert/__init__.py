"""Conversion: checkpoints and PEFT adapters to GGUF, quantized and proven equal.

It knows nothing of training, serving or retrieval.
"""
