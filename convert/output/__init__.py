"""What is written: the GGUF file, its numbers, and what is refused before and after."""
