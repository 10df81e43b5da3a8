"""An index in PostgreSQL with pgvector: several writers, a transaction for each document, readers that follow."""
