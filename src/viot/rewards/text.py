"""Texts scored by rule: what occurs in them, how long they are, which words they use. Nothing here reads or learns."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_WORD = re.compile(r"\w+(?:'\w+)*|\.{3}|[^\w\s]")


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in lower case: `Don't stop...` is don't · stop · `...`"""
    return _WORD.findall(text.lower().replace("’", "'"))


def as_texts(samples: Any, who: str) -> list[str]:
    """The samples as a list of n strings; a ValueError that says what the reward `who` would have read."""
    if isinstance(samples, Tensor):
        got = f"tensors of shape {tuple(samples.shape)}, which this model makes: use it with a model of text, such as 'names'"
    elif isinstance(samples, (list, tuple)):
        strange = next((i for i, s in enumerate(samples) if not isinstance(s, str)), None)
        if strange is None:
            return list(samples)
        got = f"{type(samples[strange]).__name__} (sample {strange} of {len(samples)})"
    else:
        got = f"{type(samples).__name__}" + ("; write [text]" if isinstance(samples, str) else "")
    raise ValueError(f"{who} scores text, a list of n strings, not {got}")


def column(values: Any) -> Tensor:
    """One number per text, as a float64 tensor (n,)."""
    return torch.tensor(list(values), dtype=torch.float64)


@dataclass(frozen=True)
class Count:
    """r = how often `text` occurs, without overlaps, in the case it is written in. `Count("a")` of "anna" is 2."""

    text: str
    differentiable = False

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text:
            raise ValueError(f"count needs the text to look for, not {self.text!r}; write count:a")

    @property
    def name(self) -> str:
        return f"count:{self.text}"

    def __call__(self, samples: list[str]) -> Tensor:
        return column(text.count(self.text) for text in as_texts(samples, self.name))


@dataclass(frozen=True)
class Regex:
    """r = 1 where the pattern (Python's `re`) matches somewhere in the text, else 0. `^` and `$` tie it to the ends; `(?i)` ignores case."""

    pattern: str
    differentiable = False

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise ValueError(f"regex needs a pattern, not {self.pattern!r}; write regex:^mar")
        try:
            re.compile(self.pattern)
        except re.error as error:
            at = "" if error.pos is None else f" at character {error.pos + 1}"
            raise ValueError(
                f"{self.pattern!r} is not a regular expression: {error.msg}{at}; a backslash before ( ) [ ] . * + ? makes it plain text"
            ) from error

    @property
    def name(self) -> str:
        return f"regex:{self.pattern}"

    def __call__(self, samples: list[str]) -> Tensor:
        found = re.compile(self.pattern)
        return column(found.search(text) is not None for text in as_texts(samples, self.name))


@dataclass(frozen=True)
class Length:
    """r = −|length − target|, in characters or in words (which punctuation marks are not)."""

    target: int
    unit: str = "characters"
    differentiable = False

    def __post_init__(self) -> None:
        if isinstance(self.target, bool) or not isinstance(self.target, int) or self.target < 0:
            raise ValueError(f"length takes a whole number ≥ 0, not {self.target!r}; write length:6, or length:12 words")
        if self.unit not in ("characters", "words"):
            raise ValueError(f"a length is counted in characters or words, not {self.unit!r}; write length:6, or length:12 words")

    @classmethod
    def parse(cls, argument: str) -> Length:
        """From "6", "6 characters" or "12 words"."""
        number, _, unit = argument.strip().partition(" ")
        if not number.isdecimal():
            raise ValueError(f"length takes a whole number ≥ 0, not {argument!r}; write length:6, or length:12 words")
        return cls(int(number), unit.strip() or "characters")

    @property
    def name(self) -> str:
        return f"length:{self.target}" + (" words" if self.unit == "words" else "")

    def __call__(self, samples: list[str]) -> Tensor:
        texts = as_texts(samples, self.name)
        sizes = (len(t) if self.unit == "characters" else sum(w[0].isalnum() or w[0] == "_" for w in words(t)) for t in texts)
        return column(-abs(size - self.target) for size in sizes)


@dataclass(frozen=True)
class Lexicon:
    """r = Σ of the weights of the words found, each as often as it occurs. Case does not matter; a word is what `words` makes one.

    weights   word -> weight, for instance {"superb": 1, "dull": -1}
    source    what to call it; of a file its path
    """

    weights: Mapping[str, float]
    source: str = field(default="", compare=False)
    differentiable = False

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError('a lexicon needs at least one word: Lexicon({"superb": 1, "dull": -1})')
        held: dict[str, float] = {}
        for word, weight in self.weights.items():
            if not isinstance(word, str) or words(word) != [word.lower()]:
                raise ValueError(f"a lexicon holds single words, not {word!r}")
            if not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"the weight of {word!r} must be a finite number, not {weight!r}")
            if word.lower() in held:
                raise ValueError(f"{word.lower()!r} is twice in the lexicon")
            held[word.lower()] = float(weight)
        object.__setattr__(self, "weights", held)

    @classmethod
    def from_file(cls, file: str | Path) -> Lexicon:
        """A UTF-8 file with a word a line, or a word, a tab and its weight (1 without). Empty lines are left out."""
        if not (path := Path(file)).is_file():
            raise FileNotFoundError(f"there is no file {file}; lexicon takes one with a word a line, or a word, a tab and its weight")
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        held: dict[str, float] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            word, tab, weight = line.strip().partition("\t")
            try:
                one = cls({word.strip(): float(weight) if tab else 1.0})
            except ValueError as error:
                raise ValueError(f"line {number} of {file} is {line!r}, not a word, or a word, a tab and a finite weight") from error
            if again := held.keys() & one.weights.keys():
                raise ValueError(f"line {number} of {file}: {next(iter(again))!r} is there a second time")
            held |= one.weights
        if not held:
            raise ValueError(f"{file} holds no words")
        return cls(held, str(file))

    @property
    def name(self) -> str:
        return f"lexicon:{self.source or self.fingerprint()}"

    def fingerprint(self) -> str:
        return hashlib.blake2b(repr(sorted(self.weights.items())).encode(), digest_size=6).hexdigest()

    def __call__(self, samples: list[str]) -> Tensor:
        return column(math.fsum(self.weights.get(w, 0.0) for w in words(text)) for text in as_texts(samples, self.name))
