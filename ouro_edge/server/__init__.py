"""OpenAI's protocol over HTTP, and the chat page."""
