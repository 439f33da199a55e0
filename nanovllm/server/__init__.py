"""The HTTP server: OpenAI's API on `AsyncLLM`. Needs the extra `server`; the core does not import it."""
