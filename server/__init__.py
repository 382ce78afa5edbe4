"""The local server: OpenAI's chat API over a loaded model."""
