"""How diverse a set of texts is. A steered set can be perfect and all the same: say this beside the reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..rewards.text import as_texts, words
from .diversity import cosine, vendi


def ngrams(text: str, n: int, characters: bool = False) -> list[tuple[str, ...]]:
    """Every run of n words (as `viot.rewards.text.words` splits them), or of n characters."""
    if n < 1:
        raise ValueError(f"an n-gram has n ≥ 1, not {n}")
    units = list(text) if characters else words(text)
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


def distinct(texts: Sequence[str], n: int = 1, *, characters: bool = False) -> float:
    """Distinct-n (arXiv 1510.03055): different n-grams of all texts / n-grams of all texts. 0 if no text has n words.

    It falls as texts grow longer or more: compare sets of the same size only.
    """
    found = [gram for text in as_texts(texts, "distinct") for gram in ngrams(text, n, characters)]
    return len(set(found)) / len(found) if found else 0.0


def ngram_kernel(texts: Sequence[str], n: int = 1, *, characters: bool = False) -> Tensor:
    """(m, m) cosines of the texts' n-gram counts, for `vendi`. Texts too short for any n-gram are like each other and like no other."""
    counts = [Counter(ngrams(text, n, characters)) for text in as_texts(texts, "ngram_kernel")]
    places = {gram: i for i, gram in enumerate({gram: None for count in counts for gram in count})}
    table = torch.zeros(len(counts), len(places) + 1, dtype=torch.float64)
    for row, count in zip(table, counts, strict=True):
        for gram, times in count.items():
            row[places[gram]] = times
        row[-1] = not count
    return cosine(table)


__all__ = ["cosine", "distinct", "ngram_kernel", "ngrams", "vendi"]
