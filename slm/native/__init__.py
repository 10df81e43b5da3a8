"""The machine below: llama.cpp, malloc, threads, processes."""
