"""Where an index is kept: files of its own with FAISS, or a PostgreSQL database with pgvector."""
