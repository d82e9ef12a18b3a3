"""OpenAI's protocol: chat completions, completions, embeddings, tools, response formats."""
