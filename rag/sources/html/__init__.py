"""HTML pages as Markdown."""
