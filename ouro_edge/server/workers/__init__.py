"""Several processes that serve one port: a supervisor, its workers, and metrics that add up."""

__all__ = ["settings", "supervisor"]
