"""From text to token ids, from the bytes of tokens back to text, and messages as lines."""
