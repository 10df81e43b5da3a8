"""Readers of office files and PDF, one a kind. Nothing in a file is followed, run or evaluated."""
