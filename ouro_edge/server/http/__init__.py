"""HTTP without the protocol on it: sockets, requests, strict JSON fields, errors, the chat page."""

__all__ = ["endpoint", "errors", "fields", "guard", "page"]
