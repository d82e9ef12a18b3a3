"""A lock between processes: whoever needs the same thing made waits for the process that makes it.

The operating system releases the lock when its owner ends, in whatever way, so a killed process does not block others.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_SECONDS = 0.1  # waiting in steps can be interrupted by Ctrl-C on every platform

if sys.platform == "win32":
    import msvcrt

    def _acquire(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _release(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquire(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _release(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of this name, also against other threads; `waiting` is called once if another owner has it.

    The empty file exists while the lock is held. Where it cannot be created or locked (a read-only directory, some
    network file systems), the block runs without a lock.
    """
    descriptor = _wait_for(path, waiting)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):  # Windows does not remove open files
                path.unlink()  # while the lock is held: whoever gets it next sees that the name has another file
            with suppress(OSError):
                _release(descriptor)  # explicitly, because a forked child may have the descriptor as well
            os.close(descriptor)


def _wait_for(path: Path, waiting: Callable[[], None]) -> int | None:
    """The descriptor of the locked file, or None without locks."""
    told = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            _acquire(descriptor)
        except (BlockingIOError, PermissionError):  # PermissionError: msvcrt, when it is locked
            os.close(descriptor)
            if not told:
                told = True
                waiting()
            time.sleep(_POLL_SECONDS)
            continue
        except OSError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_file(path, descriptor):
            return descriptor
        os.close(descriptor)  # its owner removed it between the two calls


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False
