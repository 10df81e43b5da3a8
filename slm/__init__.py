"""The ground: what every room stands on. It knows nothing of conversion, training, serving or retrieval."""

__version__ = "0.1.0"
