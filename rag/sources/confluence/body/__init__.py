"""What is in a page: the storage format, its macros, its older and newer forms, as Markdown."""
