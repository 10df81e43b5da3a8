"""Quantized types, importance matrices, and llama.cpp's quantization in a child process."""
