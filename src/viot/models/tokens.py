"""Text to tokens and back, and what is given of a text before anything is drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

#: One place left to the model, so many, or as many as there is room for.
FREE = re.compile(r"\[MASK(?::(\d+|\*))?\]")

#: Where a row has no place: it is shorter than the others.
NOTHING = -1


class Tokenizer(Protocol):
    """Text to token ids, and ids to the pieces of text that they stand for: joined, they are the text."""

    def encode(self, text: str) -> list[int]: ...
    def pieces(self, ids: list[int]) -> list[str]: ...


def _unknown(text: str, known: Sequence[str] | set[str]) -> str:
    """The characters of a text that are not known, each once, in words."""
    return ", ".join(f"{c!r}" for c in dict.fromkeys(text) if c not in known)


@dataclass(frozen=True)
class Letters:
    """One token per letter of an alphabet. Text is taken in lower case if the alphabet is."""

    alphabet: str

    def encode(self, text: str) -> list[int]:
        taken = text.lower() if self.alphabet.islower() else text
        if bad := _unknown(taken, self.alphabet):
            raise ValueError(f"{text!r} holds {bad}, which this model does not know; its letters are {self.alphabet}")
        return [self.alphabet.index(c) for c in taken]

    def pieces(self, ids: list[int]) -> list[str]:
        return [self.alphabet[i] if i < len(self.alphabet) else "" for i in ids]


class Pieces:
    """Words or pieces of words by a tokenizer of Hugging Face's `tokenizers` package, ▁ standing for the space before a word.

    Text is taken in lower case. What the tokenizer doesn't know is an error that names it, whether it would leave it out or call it `unknown`.
    """

    def __init__(self, tokenizer: Any, unknown: str = "<unk>") -> None:
        self.tokenizer, self.unknown = tokenizer, tokenizer.token_to_id(unknown)
        self.table = {i: piece for piece, i in tokenizer.get_vocab().items()}
        self.known = {c for piece in self.table.values() for c in piece} | {" "}
        #: Tokens that stand for no text, however it is written.
        self.special = set(tokenizer.get_added_tokens_decoder())

    def encode(self, text: str) -> list[int]:
        # Spaces around a text say nothing, since every word brings its own, and neither do more than one between two.
        taken = " ".join(text.lower().split())
        if not taken:
            return []
        if self.unknown is None and (bad := _unknown(taken, self.known)):
            raise ValueError(f"{text!r} holds {bad}, which this model's tokenizer does not know")
        found = self.tokenizer.encode(taken)
        ours = [i in self.special or i == self.unknown for i in found.ids]
        # A space may be a token of its own beside one that stands for no text.
        strange = [word for (a, b), bad in zip(found.offsets, ours, strict=True) if bad and (word := taken[a:b].strip())]
        if strange:
            raise ValueError(
                f"{text!r} holds {', '.join(map(repr, strange))}, which this model does not know; it knows {len(self.table)} words"
            )
        return found.ids

    def pieces(self, ids: list[int]) -> list[str]:
        out = [self.table.get(i, "").replace("▁", " ") for i in ids]
        return [out[0].lstrip(), *out[1:]] if out else out


def given(text: str, tokenizer: Tokenizer, length: int, mask_id: int, end_id: int | None) -> list[int]:
    """The tokens of a text with free places, `length` of them, `mask_id` where the model is to fill in.

    "mar" begins the text; "[MASK:3]a" is a whole text of three free places and an a; "one [MASK:*] two" leaves as many places as there is
    room for in between. After a whole text come end tokens, if the model has one.
    """
    before, *rest = FREE.split(text if FREE.search(text) else f"{text}[MASK:*]")
    ids: list[int] = list(tokenizer.encode(before))
    tail: list[int] | None = None
    for count, words in zip(rest[::2], rest[1::2], strict=True):
        if count == "*":
            if tail is not None:
                raise ValueError(f"{text!r} holds [MASK:*] twice; there is room for one place of open length")
            tail = list(tokenizer.encode(words))
            continue
        (ids if tail is None else tail).extend([mask_id] * int(count or 1) + list(tokenizer.encode(words)))
    used = len(ids) + len(tail or [])
    if used > length:
        raise ValueError(f"the prompt {text!r} takes {used} tokens, and the model has room for {length}; give it a shorter one")
    filling = mask_id if tail is not None or end_id is None else end_id
    ids = ids + [filling] * (length - used) + (tail or [])
    if mask_id not in ids:
        raise ValueError(f"the prompt {text!r} leaves no place free; shorten it, or write [MASK] where the model is to fill in")
    return ids


def before_told(rows: Tensor, mask_id: int, end_id: int | None) -> Tensor:
    """(rows, length) bool: the free places that a token which is known and no end follows, where a text can't end."""
    told = (rows != mask_id) & (rows != (mask_id if end_id is None else end_id)) & (rows != NOTHING)
    return (rows == mask_id) & (told.flip(-1).cumsum(-1).flip(-1) > 0)


def as_rows(prompts: list[str] | None, tokenizer: Tokenizer, length: int, mask_id: int, end_id: int | None) -> Tensor:
    """(prompts, length) what each prompt gives; everything free without any."""
    return torch.tensor([given(p, tokenizer, length, mask_id, end_id) for p in prompts or [""]])
