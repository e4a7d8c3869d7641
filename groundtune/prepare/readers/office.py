"""The archives in which Word, PowerPoint and Excel store a document."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lxml import etree

from groundtune.prepare.readers.page import MB, contents, told_title, too_large, unreadable

_OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of files before 2007, and of those with a password
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
# Folders in an archive whose files are not read, and what they hold.
_NOT_READ = {"charts": "charts", "diagrams": "SmartArt", "embeddings": "embedded files", "media": "images",
             "comments": "comments", "threadedComments": "comments"}  # fmt: skip


def opened(path: Path, kind: str, suffix: str, max_mb: int) -> zipfile.ZipFile:
    """The archive of a file.

    Raises:
        DataError: it has a password, is of an older format, is no archive, or unpacks to more than `max_mb`.
    """
    data = contents(path)
    if data.startswith(_OLD):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise unreadable(path, "is protected by a password", "save it without a password")
        raise unreadable(path, f"is a {kind} file of the format before 2007", f"save it as {suffix}")
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))  # which gives no more of an entry than the size that it states
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise broken(path, kind, suffix, error) from error
    if (size := sum(entry.file_size for entry in archive.infolist())) > max_mb * MB:
        raise too_large(path, f"unpacks to {size / MB:,.0f} MB")
    return archive


def broken(path: Path, kind: str, suffix: str, error: Exception) -> Exception:
    reason = f"is not a readable {kind} file ({type(error).__name__}: {error})"
    return unreadable(path, reason, f"save it again as {suffix}")


def tree(archive: zipfile.ZipFile, name: str) -> etree._Element:
    """A part of an archive; no entities are replaced and no other file is opened."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True)
    return etree.fromstring(archive.read(name), parser)


def related(archive: zipfile.ZipFile, name: str) -> dict[str, tuple[str, str]]:
    """The parts that a part refers to: id -> the last word of its type, and its name."""
    folder, file = posixpath.split(name)
    relations = f"{folder}/_rels/{file}.rels".lstrip("/")
    if relations not in archive.namelist():
        return {}
    found = tree(archive, relations)
    return {
        one.get("Id", ""): (
            one.get("Type", "").rpartition("/")[2],
            posixpath.normpath(posixpath.join(folder, one.get("Target", ""))).lstrip("/"),
        )
        for one in found
        if one.get("TargetMode") != "External"
    }


def title_of(archive: zipfile.ZipFile) -> str:
    """The title in the properties of a document."""
    if "docProps/core.xml" not in archive.namelist():
        return ""
    return told_title(tree(archive, "docProps/core.xml").findtext(_TITLE) or "")


def not_read(archive: zipfile.ZipFile) -> list[str]:
    """What a document holds that is not text: "images", "charts" ..."""
    places = [name.split("/") for name in archive.namelist()]
    words = (
        place[1].rstrip("0123456789").removesuffix(".xml").rstrip("0123456789") for place in places if len(place) > 1
    )
    return sorted({_NOT_READ[word] for word in words if word in _NOT_READ})


def element(tag: str, *parts: str | etree._Element, **attributes: Any) -> etree._Element:
    """An element of HTML with text and other elements in it."""
    made = etree.Element(tag, {name: str(value) for name, value in attributes.items()})
    append(made, parts)
    return made


def append(made: etree._Element, parts: Sequence[str | etree._Element]) -> None:
    for part in parts:
        if not isinstance(part, str):
            made.append(part)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + part
        else:
            made.text = (made.text or "") + part
