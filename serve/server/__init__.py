"""The HTTP server: OpenAI's API, the guard at the door, metrics, and the page."""
