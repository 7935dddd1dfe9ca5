"""The small language of the `captions` model: what a caption says of a picture, and how a picture is said.

    a seven · a thick red seven · two sevens · two blue sevens · a three above a thin green one · an eight left of a two · a six beside a six

A picture holds one or two digits. Every digit has a colour and a stroke, which a caption may leave unsaid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
COLOURS = ("white", "red", "green", "blue", "yellow")
STROKES = ("plain", "thick", "thin")
LAYOUTS = ("single", "side by side", "stacked")
SINGLE, SIDE, STACKED = range(3)

#: Every word a caption may use; the tokenizer's vocabulary is made of them.
WORDS = ("a", "an", "two", "above", "below", "left", "right", "of", "beside", *STROKES[1:], *COLOURS, *DIGITS, *PLURALS)


@dataclass(frozen=True)
class Thing:
    """One digit as a caption says it: None where it says nothing."""

    digit: int
    colour: int | None = None
    stroke: int | None = None

    def __str__(self) -> str:
        said = [COLOURS[self.colour]] if self.colour is not None else []
        said = ([STROKES[self.stroke]] if self.stroke else []) + said + [DIGITS[self.digit]]
        return ("an " if said[0][0] == "e" else "a ") + " ".join(said)


@dataclass(frozen=True)
class Reading:
    """One way in which a picture can agree with a caption: a layout, and its things from left to right or from the top down."""

    layout: int
    things: tuple[Thing, ...]


_ADJECTIVES = rf"(?:(?P<stroke>{'|'.join(STROKES[1:])}) )?(?:(?P<colour>{'|'.join(COLOURS)}) )?"
_THING = re.compile(rf"an? {_ADJECTIVES}(?P<digit>{'|'.join(DIGITS)})")
_PAIR = re.compile(rf"two {_ADJECTIVES}(?P<digit>{'|'.join(PLURALS)})")
_RELATION = re.compile(r" (above|below|left of|right of|beside) ")


def parse(caption: str) -> tuple[Reading, ...]:
    """Every reading of a picture that makes the caption true. ValueError for what is not in the language."""
    text = " ".join(caption.lower().strip(" .").split())
    if pair := _PAIR.fullmatch(text):
        thing = _thing(pair, PLURALS)
        return tuple(Reading(layout, (thing, thing)) for layout in (SIDE, STACKED))
    first, *rest = _RELATION.split(text)
    found = [_THING.fullmatch(piece) for piece in (first, *rest[1::2])]
    if not all(found) or len(found) > 2:
        raise ValueError(
            f"the caption {caption!r} is not in this model's small language; write for example 'a seven', 'two red sevens' or "
            f"'a thick three above a blue one' (digits in words; {', '.join((*STROKES[1:], *COLOURS))}; above, below, left of, right of, beside)"
        )
    things = tuple(_thing(match, DIGITS) for match in found if match)
    if not rest:
        return (Reading(SINGLE, things),)
    swapped = things[::-1]
    return {
        "above": (Reading(STACKED, things),),
        "below": (Reading(STACKED, swapped),),
        "left of": (Reading(SIDE, things),),
        "right of": (Reading(SIDE, swapped),),
        "beside": tuple(dict.fromkeys((Reading(SIDE, things), Reading(SIDE, swapped)))),
    }[rest[0]]


def _thing(match: re.Match[str], digits: tuple[str, ...]) -> Thing:
    colour, stroke = match["colour"], match["stroke"]
    return Thing(
        digits.index(match["digit"]), None if colour is None else COLOURS.index(colour), None if stroke is None else STROKES.index(stroke)
    )
