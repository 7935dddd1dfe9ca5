"""The rows of a bench: read from its folder, and what they have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..report.words import listed

Row = dict[str, Any]


def read(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The rows in a bench's folder, with their files."""
    for path in sorted((folder / "rows").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            lacking = {"config", "viot", "task", "method", "budget", "seed"} - set(row)
            lacking = lacking or {"model", "lam", "reward", "reading"} - set(row["config"])
            if lacking:
                raise KeyError(min(lacking))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the row of a bench ({type(error).__name__}: {error}); remove it") from error
        yield path, row


def methods(rows: list[Row]) -> list[str]:
    """As they were run: plain sampling first, then by name."""
    return sorted({row["method"] for row in rows}, key=lambda name: (name != "base", name))


def budgets(rows: list[Row]) -> list[int]:
    return sorted({row["budget"] for row in rows})


def sweep(rows: list[Row]) -> list[float]:
    """The strengths, where methods were run at several or each has a target of its own; else nothing: published ones may differ between methods."""
    by: dict[str, set[float]] = {}
    for row in rows:
        by.setdefault(row["method"], set()).add(row["config"]["lam"])
    every = sorted(set().union(*by.values()))
    targets = any((read := row["config"]["reading"]).get("features") and read.get("reference") and not read.get("untilted") for row in rows)
    return every if len(every) > 1 and (targets or any(len(lams) > 1 for lams in by.values())) else []


def rewards_of(rows: list[Row]) -> str:
    """In words; the sums of a front are one with a free weight."""
    front = rows[0]["config"]["reading"].get("front")
    if front is not None and all(row["config"]["reward"].startswith("sum:") for row in rows):
        return f"w·{front['rewards'][0]} + (1 − w)·{front['rewards'][1]}"
    return listed(sorted({row["config"]["reward"] for row in rows}))


def reasons(rows: list[Row]) -> list[tuple[str, str]]:
    """Which methods failed and why, each reason once."""
    return list(dict.fromkeys((row["method"], row["failed"]) for row in sorted(rows, key=lambda r: r["method"]) if "failed" in row))
