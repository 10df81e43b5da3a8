"""From passages to a prompt, and from an answer to checked citations with their quotes."""
