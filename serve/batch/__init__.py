"""Many requests of a file, answered into a file: OpenAI's batches on this machine."""
