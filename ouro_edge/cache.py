"""Where this program keeps what it can make again. Knows the platform's habits only."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_directory() -> Path:
    """OURO_EDGE_CACHE, else the platform's cache folder."""
    if own := os.environ.get("OURO_EDGE_CACHE"):
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ouro-edge"
