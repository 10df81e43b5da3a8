"""Markdown files as plain Markdown: without markup that a reader never sees."""
