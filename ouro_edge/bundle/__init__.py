"""The on-disk format of an exported model: files, manifest, fitted gate, KV ranges and the prefill copy."""
