"""A checkpoint's tokenizer as a GGUF vocabulary, one module a kind, and the proof that the token ids are equal.

It knows nothing of tensors or of model families.
"""
