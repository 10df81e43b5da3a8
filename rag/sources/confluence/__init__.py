"""Confluence pages: the storage format, exports as HTML and XML, and saved answers of its API."""
