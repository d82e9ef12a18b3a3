"""Token ids to text and back: tokenizer, chat template, stop strings, reasoning tags."""

__all__ = ["chat_template", "model_text", "reasoning", "stop_strings", "tokenizer"]
