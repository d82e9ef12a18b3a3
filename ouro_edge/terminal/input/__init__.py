"""What `chat` reads: the prompt line, its history, keys and interrupts."""

__all__ = ["history", "interrupt", "keyboard", "prompt"]
