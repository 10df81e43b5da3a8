"""The lexical leg: what the terms of a text are, and BM25 over them."""
