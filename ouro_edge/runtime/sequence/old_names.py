"""Names of version 0.1 that still work, with a DeprecationWarning, for one release."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


def renamed(old: str, new: str) -> Callable[..., Any]:
    """A method `old` that calls the method `new` of the same object."""

    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)(*arguments, **keywords)

    method.__name__, method.__doc__ = old, f"Deprecated name of `{new}`."
    return method
