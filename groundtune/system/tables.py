"""Tables for the terminal. Their text is shown as it is: rich would take `[red]` in a file's name for a command."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from groundtune.system.text import harmless_line


class TextTable(Table):
    """A rich table without markup, emoji codes or control characters. A long word goes on in the next line: with its
    end cut off, names that begin alike would be one."""

    def __init__(self, *headers: str, title: str = "", caption: str = "", **layout: Any) -> None:
        super().__init__(*headers, **layout)
        self.title = literal(title, "table.title") if title else None
        self.caption = literal(caption, "table.caption") if caption else None

    def add_column(self, header: Any = "", *args: Any, **layout: Any) -> None:
        super().add_column(literal(header), *args, **{"overflow": "fold", **layout})

    def add_row(self, *cells: Any, **layout: Any) -> None:
        super().add_row(*map(literal, cells), **layout)


def literal(text: object, style: str = "") -> Text:
    """A text that rich shows as it is."""
    return Text(harmless_line(str(text)), style=style)
