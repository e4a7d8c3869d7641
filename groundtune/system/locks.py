"""Locks that admit one process at a time to an output. The operating system releases them when the process ends."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from groundtune.errors import DataError
from groundtune.system.durable import disk_errors
from groundtune.system.outputs import in_place_of, inside

logger = logging.getLogger(__name__)

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG)
_WITHOUT_LOCKS = (None, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def alone(
    folder: Path, file: str = "", flag: str = "output_dir", patience: float = 1.0, stays: bool = False
) -> Iterator[None]:
    """Be the only process that writes to `folder`, or to `file` in it; `folder` is created.

    Others get a `DataError` that names this process after `patience` seconds. The lock's file, and a folder that is
    still empty, are removed if they were created here, unless the lock `stays`: while others wait for it, removing it
    is not safe.
    """
    created = not os.path.isdir(folder)
    name, what = (f".{file}", folder / file) if file else (".run", folder)
    lock, holder = inside(folder, f"{name}.lock"), inside(folder, f"{name}.holder")
    stays = stays or lock.exists()

    def in_use() -> None:
        problem = f"--{flag}: {what} is in use by {_read(holder)}; wait for it, or name another {_kind(file)}"
        raise DataError([problem])

    with held(folder, lock.name, flag, patience, in_use) as is_held:
        if not is_held:
            yield
            return
        try:
            with suppress(OSError), in_place_of(holder) as written:  # on a full disk others are not told the name
                written.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            with suppress(OSError):
                holder.unlink()
            if not stays:
                with suppress(OSError):  # on Windows, where it cannot be removed yet
                    lock.unlink()
                    if created:
                        folder.rmdir()


def _kind(file: str) -> str:
    return "file" if file else "folder"


def _read(holder: Path) -> str:
    try:
        return holder.read_text("utf-8") or "another process"
    except (OSError, ValueError):  # it was just created or just removed
        return "another process"


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
            with disk_errors(folder):
                raise
        logger.warning("%s is on a file system without locks: make sure that no other run writes there", folder)
    try:
        yield lock.is_locked
    finally:
        lock.release()
