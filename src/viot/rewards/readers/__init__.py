"""Small readers of English that come with the package: the sentiment of film reviews, how acceptable a sentence is, and how likely.

How each does on text it has not seen stands in `training.json` beside the weights. The judge is for measuring: don't steer by it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...hub import embedded
from ...registry import unknown
from ..text import as_texts
from . import nets
from .bayes import NaiveBayes
from .ngram import NGram

FOLDER = Path(__file__).parent
SENTIMENTS = ("negative", "positive")
NGRAMS = ("names", "reviews")


class Reader(Protocol):
    """Anything that reads n texts as logits (n, 2)."""

    def read(self, texts: list[str]) -> Tensor: ...


@cache
def reviews() -> nets.Bag:
    """The reward's reader of film reviews: a bag of hashed words, pieces of words and pairs, trained on rt-polarity (Pang & Lee 2005)."""
    return embedded(nets.Bag(), FOLDER / "reviews.safetensors")


@cache
def judge() -> NaiveBayes:
    """Another kind of reader, naive Bayes over whole words, trained on SST-2: the referee of film reviews, not to be steered by.

    It is independent in method and in its labels, not in its sentences: SST-2 annotated those of rt-polarity anew, so the two readers have
    learnt from many of the same sentences, and the judge has seen part of what is held out for the other.
    """
    return NaiveBayes.load(FOLDER / "judge.safetensors")


@cache
def acceptable() -> nets.Convolution:
    """The reader of acceptability, trained on CoLA (Warstadt et al. 2019) after telling sentences from spoilt ones."""
    return embedded(nets.Convolution(), FOLDER / "acceptable.safetensors")


@cache
def ngram(name: str) -> NGram:
    """An n-gram model: of characters, order 4, for "names"; of words, order 3, for "reviews"."""
    if name not in NGRAMS:
        raise unknown("n-gram model", name, NGRAMS)
    return NGram.load(FOLDER / f"ngram-{name}.safetensors")


class _LogProbability:
    """r = log p(label | text) of a reader, at most 0; float64 (n,) on the CPU."""

    differentiable = False
    name: str

    def __init__(self, reader: Reader, label: int) -> None:
        self.reader, self.label = reader, label

    def __call__(self, samples: list[str]) -> Tensor:
        texts = as_texts(samples, self.name)
        if not texts:
            return torch.zeros(0, dtype=torch.float64)
        with torch.no_grad():
            return self.reader.read(texts).double().log_softmax(-1)[:, self.label]


class Reviews(_LogProbability):
    """r = log p(praise | a sentence of a film review), or of blame. At most 0. The reader is a bag of words: it can be flattered by piling up
    praise, which `ReviewsJudge` and an n-gram model show.

    label   "positive" or "negative"
    """

    def __init__(self, label: str = "positive") -> None:
        super().__init__(reviews(), _sentiment(label))
        self.name = f"reviews:{label}"


class ReviewsJudge(_LogProbability):
    """`Reviews` by the reader that is kept for measuring (`judge`)."""

    def __init__(self, label: str = "positive") -> None:
        super().__init__(judge(), _sentiment(label))
        self.name = f"reviews-judge:{label}"


class Acceptable(_LogProbability):
    """r = log p(linguists accept the sentence). At most 0.

    A weak reader: it notices word salad, and of real grammar little (see `training.json` for its Matthews correlation). `cola` is the strong one.
    """

    name = "acceptable"

    def __init__(self) -> None:
        super().__init__(acceptable(), 1)


class Fluency:
    """r = mean log p per token, in nats, of an n-gram model: at most 0. A token is a character of a name, a word of a review, or the end.

    model   "names", "reviews", or an `NGram` of your own
    """

    differentiable = False

    def __init__(self, model: str | NGram) -> None:
        self.model = model if isinstance(model, NGram) else ngram(model)
        self.name = f"ngram:{model if isinstance(model, str) else 'own'}"

    def fingerprint(self) -> str:
        return self.model.fingerprint()

    def __call__(self, samples: list[str]) -> Tensor:
        return -self.model.nll(as_texts(samples, self.name))


def _sentiment(label: str) -> int:
    if label not in SENTIMENTS:
        raise unknown("sentiment", label, SENTIMENTS)
    return SENTIMENTS.index(label)


__all__ = ["Acceptable", "Fluency", "NGram", "NaiveBayes", "Reviews", "ReviewsJudge", "acceptable", "judge", "ngram", "reviews"]
