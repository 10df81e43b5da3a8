"""Measures retrieval and answers on questions with known right documents."""
