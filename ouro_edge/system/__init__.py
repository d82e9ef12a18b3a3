"""This machine: CPUs, memory, huge pages, the cache directory, model downloads and file writes."""
