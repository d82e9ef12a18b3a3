"""What `chat` shows: Markdown while it streams, depth colours, the live region."""
