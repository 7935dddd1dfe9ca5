"""Naive Bayes over the words of a text: a reader without embeddings, gradients or pieces of words."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..text import as_texts, words


class NaiveBayes:
    """log p(1 | text) − log p(0 | text) = scale · (bias + Σ over the different words w of the text of log p(w | 1)/p(w | 0)).

    A word counts once however often it occurs, so that repeating it gains nothing; unknown ones count nothing. Its independent words make
    naive Bayes too sure of itself: `scale` < 1, chosen on other texts, says how much.
    """

    def __init__(self, weights: Mapping[str, float], bias: float, scale: float = 1.0) -> None:
        self.weights, self.bias, self.scale = dict(weights), bias, scale

    @classmethod
    def fit(cls, texts: Iterable[tuple[str, int]]) -> NaiveBayes:
        """From texts with label 0 or 1, both of which must occur: words are multinomial, with one more of each word than was seen."""
        counts, classes = (Counter[str](), Counter[str]()), Counter[int]()
        for text, label in texts:
            counts[label].update(set(words(text)))
            classes[label] += 1
        if not (classes[0] and classes[1]):
            raise ValueError("naive Bayes needs texts of both labels")
        vocabulary = sorted(counts[0] | counts[1])
        totals = [math.log(sum(count.values()) + len(vocabulary)) for count in counts]
        weights = {w: math.log(counts[1][w] + 1) - totals[1] - math.log(counts[0][w] + 1) + totals[0] for w in vocabulary}
        return cls(weights, math.log(classes[1] / classes[0]))

    def read(self, texts: Sequence[str]) -> Tensor:
        """Log-odds as logits (n, 2), float64; the first is 0."""
        odds = [self.bias + math.fsum(self.weights.get(w, 0.0) for w in set(words(text))) for text in as_texts(texts, "NaiveBayes")]
        found = torch.tensor(odds, dtype=torch.float64) * self.scale
        return torch.stack([torch.zeros_like(found), found], 1)

    def save(self, file: str | Path) -> None:
        """Write it as safetensors; weights in half precision."""
        letters = json.dumps(list(self.weights), ensure_ascii=False, separators=(",", ":")).encode()
        tensors = {
            "words": torch.tensor(list(letters), dtype=torch.uint8),
            "weights": torch.tensor(list(self.weights.values()), dtype=torch.float16),
        }
        save_file(tensors, file, metadata={"bayes": json.dumps({"bias": self.bias, "scale": self.scale})})

    @classmethod
    def load(cls, file: str | Path) -> NaiveBayes:
        """What `save` wrote."""
        with safe_open(file, framework="pt") as held:
            about = (held.metadata() or {}).get("bayes")
            if about is None:
                raise ValueError(f"{file} holds no naive Bayes; NaiveBayes.save writes one")
            known = json.loads(bytes(held.get_tensor("words").tolist()))
            weights = held.get_tensor("weights").double().tolist()
        return cls(dict(zip(known, weights, strict=True)), **json.loads(about))
