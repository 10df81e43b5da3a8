"""Serving: one GGUF model with many hot-loaded adapters, chat, generation and the HTTP server.

It knows nothing of how models are made.
"""
