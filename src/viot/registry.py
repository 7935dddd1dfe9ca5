"""Things with names: the one place where a string becomes an object, and where a mistyped one is answered."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name nobody has, with the nearest one that somebody has."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


@dataclass(frozen=True)
class Entry:
    """What a name stands for, and what `viot list` says of it."""

    make: Callable[..., Any]
    summary: str
    cost: str = ""
    licence: str = ""
    example: str = ""


@dataclass
class Registry:
    """A table of named things of one kind ("method", "reward", …)."""

    kind: str
    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, name: str, summary: str, *, cost: str = "", licence: str = "", example: str = "") -> Callable:
        """Decorator: register what it decorates under `name`. A name may be taken once."""

        def register(make: Callable) -> Callable:
            if name in self.entries:
                raise ValueError(f"the {self.kind} {name!r} is registered already ({self.entries[name].make!r})")
            self.entries[name] = Entry(make, summary, cost, licence, example or name)
            return make

        return register

    def __getitem__(self, name: str) -> Entry:
        if name not in self.entries:
            raise unknown(self.kind, name, self.entries)
        return self.entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)
