"""Retrieval measured: how fast pages are embedded, searched and replaced, and in how much memory."""
