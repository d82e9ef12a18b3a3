"""From an exported model to tokens. Must not import the exporter."""

__all__ = [
    "async_bridge",
    "backend",
    "checks",
    "events",
    "exits",
    "forward",
    "model",
    "open_model",
    "option_table",
    "options",
    "request",
    "sampling",
    "saved",
    "sequence",
    "text",
]
