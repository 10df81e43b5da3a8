"""Models by name: catalog, download, what an argument MODEL means, caches made of them."""
