"""Measures servers of one model with adapters under load, ours beside llama.cpp's. It knows them only by HTTP."""
