"""How methods, settings, strengths and groups are written on a command line."""

from __future__ import annotations

import ast
from typing import Any

from .calibrate import Strength, ess, kl


def value_of(text: str) -> Any:
    """A Python literal (3, 0.5, None, True, [1, 2], {"name": "rollout"}), or else the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def setting(text: str, example: str = "potential=max") -> tuple[str, Any]:
    """`key=value`"""
    key, equals, value = text.partition("=")
    if not equals or not key.strip().isidentifier():
        raise ValueError(f"a setting is written key=value, for example {example}, not {text!r}")
    return key.strip(), value_of(value)


def split_list(text: str) -> list[str]:
    """The pieces of `a,b(c=1,d=2),e` at the commas outside of brackets and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == "," and depth == 0:
            pieces.append(text[start:i])
            start = i + 1
    pieces = [piece.strip() for piece in [*pieces, text[start:]]]
    if not all(pieces):
        raise ValueError(f"{text!r} holds an empty entry; write names between single commas, for example fvd,vasr")
    return pieces


def method_spec(text: str) -> tuple[str, dict[str, Any]]:
    """`fkd` or `fkd(potential=max, ess_threshold=None)`: the name and the settings."""
    name, bracket, rest = text.strip().partition("(")
    if not bracket:
        return name, {}
    if not rest.endswith(")"):
        raise ValueError(f"{text!r} lacks a closing bracket; write a method with settings as fkd(potential=max)")
    inside = rest[:-1].strip()
    found = [setting(piece) for piece in split_list(inside)] if inside else []
    if len(dict(found)) < len(found):
        raise ValueError(f"{text!r} gives a setting twice")
    return name.strip(), dict(found)


def number_or_wish(text: str) -> float | Strength:
    """λ: a number, `ess:0.3` or `kl:2`."""
    kind, colon, value = text.partition(":")
    try:
        if not colon:
            return float(text)
        if kind in ("ess", "kl"):
            number = float(value)
            return ess(number) if kind == "ess" else kl(number)
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
    raise ValueError(f"--lam takes a number, ess:SHARE or kl:NATS (for example 2.5, ess:0.3 or kl:2), not {text!r}")


def which_groups(text: str) -> int | tuple[int, ...]:
    """A count, `4`, or a range of indices, `4:8` (4, 5, 6 and 7)."""
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(text)
        indices = tuple(range(int(first or 0), int(last)))
    except ValueError as error:
        raise ValueError(f"--groups takes a count or a range such as 4:8, not {text!r}") from error
    if not indices:
        raise ValueError(f"--groups {text} holds no group; 4:8 means the groups 4, 5, 6 and 7")
    return indices
