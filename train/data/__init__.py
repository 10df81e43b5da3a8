"""Training text on its way from a file to token ids and labels. Knows nothing of models."""
