"""What `chat` reads: the prompt line, its history, keys and interrupts."""
