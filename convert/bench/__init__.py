"""Our conversion and quantization beside llama.cpp's own, in one run."""
