"""KV cells: where a request's sequence is placed, and what is kept of those that left."""
