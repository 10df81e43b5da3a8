"""What clients get: OpenAI's objects, calls of functions, streams of events."""
