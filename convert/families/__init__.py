"""One file a model family: how its tensors and hyper-parameters are written in GGUF."""
