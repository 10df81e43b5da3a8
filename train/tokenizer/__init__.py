"""A tokenizer shared fairly between languages, and its figures beside known ones."""
