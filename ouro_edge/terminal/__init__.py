"""The interactive `chat`: conversation state, commands, Markdown while it streams."""

__all__ = ["conversation", "display", "repl", "settings", "start"]
