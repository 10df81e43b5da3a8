"""A reader: an encoder that has learned to see which lines of a passage answer a question."""
