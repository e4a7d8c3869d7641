"""A lock that admits one process at a time to a folder. The operating system releases it when the process ends."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from groundtune.errors import DataError
from groundtune.system.outputs import inside

logger = logging.getLogger(__name__)

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
_WITHOUT_LOCKS = (None, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def held(folder: Path, file: str, flag: str, patience: float, busy: Callable[[], None]) -> Iterator[bool]:
    """Create `folder` and hold the lock `file` in it; yields False, with a warning, if the file system has no locks.

    After `patience` seconds `busy` is called: it raises, or reports that this process is waiting for another one.
    Raises `DataError` that names `flag` if the folder cannot be written to.
    """
    lock = FileLock(inside(folder, file))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            busy()
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter: older filelock versions, for example on Lustre
        number = getattr(error, "errno", None)
        if isinstance(error, OSError) and number in _NOT_WRITABLE:
            problem = f"--{flag}: {folder} cannot be written to ({error.strerror}); name another folder"
            raise DataError([problem]) from error
        if number not in _WITHOUT_LOCKS:
            raise
        logger.warning("%s is on a file system without locks: make sure that no other run writes there", folder)
    try:
        yield lock.is_locked
    finally:
        lock.release()
