"""HTTP without the protocol on it: sockets, requests, strict JSON fields, errors, the chat page."""
