"""This machine: CPUs, memory, huge pages, the cache directory, model downloads and file writes."""

__all__ = ["cache_dir", "cpus", "file_lock", "files", "hub", "huge_pages", "memory", "numbers", "progress"]
