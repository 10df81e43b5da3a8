"""One file a family of language models."""
