"""Embedders: what runs a model that turns texts into vectors."""
