"""Tokenizer files as plain data, old and new."""
