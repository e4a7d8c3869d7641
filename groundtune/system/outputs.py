"""All files are written through this module, which never writes through a link inside a folder.

The folder path that a user types may lead through links, for example to a larger disk. Links inside the folder may have
come from somebody else, who would then choose which file on this machine is overwritten. So links are refused wherever
a file or subfolder is to be written, and they are reported before the work begins.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from groundtune.errors import DataError


def is_link(path: str | os.PathLike[str]) -> bool:
    """Whether the last part of `path` is a link, whatever its target; Windows junctions count as links."""
    isjunction = getattr(os.path, "isjunction", None)  # since Python 3.12
    return os.path.islink(path) or bool(isjunction and isjunction(path))


def links_at(paths: Iterable[str | os.PathLike[str]], flag: str = "") -> list[str]:
    """A line for each of these outputs that is a link."""
    return [_refusal(path, flag) for path in paths if is_link(path)]


def links_in(folder: Path, *below: str, flag: str = "") -> list[str]:
    """A line for each link among the entries of `folder`, or anywhere in subfolders that match one of `below`."""
    entries, found = [], []
    with suppress(OSError):  # missing or unreadable: reported when it is written
        entries = sorted(folder.iterdir())
    for entry in entries:
        if is_link(entry):
            found.append(entry)
        elif any(fnmatch(entry.name, pattern) for pattern in below):
            inner = [Path(at, name) for at, folders, files in os.walk(entry) for name in (*folders, *files)]
            found += sorted(filter(is_link, inner))
    return links_at(found, flag)


def refuse_links(folder: Path, *below: str) -> None:
    """Raise `DataError` with the links that `links_in` finds, if any."""
    if problems := links_in(folder, *below):
        raise DataError(problems)


def inside(folder: Path, *names: str) -> Path:
    """`folder`/names. Raises `DataError` if any of these names, the last one included, is a link."""
    path = Path(folder)
    for name in names:
        path = path / name
        if is_link(path):
            raise DataError([_refusal(path)])
    return path


@contextmanager
def in_place_of(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file that atomically replaces `path` when the block ends, and is deleted if the block raises.

    It has the mode of the file that it replaces; a new file has the usual one, not that of `tempfile`, which only its
    owner can read. Raises `DataError` if `path` is a link.
    """
    target = inside(Path(path).parent, Path(path).name)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    before = _modes([target]).get(target)
    try:
        with open(temporary, "xb", opener=_new_file) as file:
            if before is not None:
                _set_mode(temporary, before)  # while it is empty: what is private is at no time readable
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def usual_modes(folder: Path) -> Iterator[None]:
    """Give the files that a library writes to `folder` inside the mode that `open` would have given them.

    safetensors makes weights readable by their owner only, so that a server that runs as another user cannot load
    them. A file that is replaced keeps its mode.
    """
    before = _modes(_files(folder))
    yield
    now = _modes(_files(folder))
    usual = _mode_of_new_files(folder) if now.keys() - before.keys() else None
    for path, mode in now.items():
        wanted = before.get(path, usual)
        if wanted is not None and wanted != mode:
            _set_mode(path, wanted)


def _files(folder: Path) -> Iterator[Path]:
    return (Path(at, name) for at, _, names in os.walk(folder) for name in names)


def _modes(paths: Iterable[Path]) -> dict[Path, int]:
    """The modes of those that are there and are no links; empty on Windows, which has none."""
    found = {}
    for path in paths if os.name != "nt" else ():
        with suppress(OSError):
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                found[path] = mode & 0o777
    return found


def _set_mode(path: Path, mode: int) -> None:
    with suppress(OSError):  # some file systems have no modes
        os.chmod(path, mode)


def _mode_of_new_files(folder: Path) -> int:
    """As decided by the umask and the folder's access list; asking for the umask would change it for all threads."""
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(probe, "xb", opener=_new_file) as file:
            return os.fstat(file.fileno()).st_mode & 0o777
    finally:
        probe.unlink(missing_ok=True)


def no_follow(path: str, flags: int) -> int:
    """An `opener` for files that are changed in place; it refuses links."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _new_file(path: str, flags: int) -> int:
    return no_follow(path, flags | os.O_CREAT | os.O_EXCL)


def _refusal(path: str | os.PathLike[str], flag: str = "") -> str:
    what = f"{f'--{flag}: ' if flag else ''}{path} is a link to {os.path.realpath(path)}"
    line = f"{what}, and output is never written through a link; remove it, or name another output"
    return line if line.isprintable() else repr(line)[1:-1]  # names may contain terminal escape sequences
