"""What belongs together because it shares something, also by way of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def connected(keys: Sequence[Iterable[str]]) -> list[int]:
    """For each item the number of its group: items with a common key share it, and one without keys is alone.

    Groups are numbered in the order of their first items. Union-find, so the time grows with the number of keys.
    """
    leader: dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = key = leader[leader[key]]
        return key

    items = [list(of_item) for of_item in keys]
    for of_item in items:
        for other in of_item[1:]:
            leader[find(other)] = find(of_item[0])
    names = [find(of_item[0]) if of_item else number for number, of_item in enumerate(items)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]
