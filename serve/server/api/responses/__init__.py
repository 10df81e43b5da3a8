"""OpenAI's /v1/responses, on the path of a chat."""
