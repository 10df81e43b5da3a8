"""A model from random weights, or all weights of a model trained further."""
