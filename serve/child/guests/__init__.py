"""Who computes beside the lanes, on cores they lend: embeddings, and scores of texts that are only read."""
