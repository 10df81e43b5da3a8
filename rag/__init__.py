"""Retrieval: documents to chunks to an index to cited answers. It knows nothing of how a model answers."""
