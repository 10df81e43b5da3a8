"""What clients may send, checked field by field."""
