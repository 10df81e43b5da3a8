"""One file a family of text encoders."""
