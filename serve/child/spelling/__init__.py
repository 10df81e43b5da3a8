"""From text to token ids, and from the bytes of tokens back to text."""
