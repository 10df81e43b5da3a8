"""Servers of one model with adapters under load, ours beside llama.cpp's: the scenarios, and a whole run of them."""
