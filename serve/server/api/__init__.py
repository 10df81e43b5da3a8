"""The shapes of requests and answers, as OpenAI, llama-server and vLLM write them. It knows nothing of the engine."""
