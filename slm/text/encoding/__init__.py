"""Bytes that came from elsewhere to text: which encoding they are in."""
