"""The interactive `chat`: conversation state, commands, Markdown while it streams."""
