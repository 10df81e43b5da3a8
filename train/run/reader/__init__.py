"""Teaches a base to judge which lines of its passages answer a question."""
