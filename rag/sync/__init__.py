"""Keeps an index in step with where its documents come from."""
