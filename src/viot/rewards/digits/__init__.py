"""What a small classifier reads in an image of a handwritten digit. The judge beside it is for measuring only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ...hub import embedded, moved_to
from ..images import as_pictures
from .nets import Classifier, Judge

FOLDER = Path(__file__).parent


@cache
def classifier() -> Classifier:
    """The reward's classifier: images (n, 1, 28, 28) in [0, 1] -> logits (n, 10)."""
    return embedded(Classifier(), FOLDER / "classifier.safetensors")


@cache
def judge() -> Judge:
    """Another architecture, trained on augmented images: the referee, not to be steered by. Shapes as `classifier`."""
    return embedded(Judge(), FOLDER / "judge.safetensors")


class Digits:
    """r(x) = max over `wanted` of log p(c | x) (arXiv 2506.20701, F.2): for one digit its log-probability. At most 0."""

    differentiable = True

    def __init__(self, wanted: Sequence[int]) -> None:
        if not wanted or any(not 0 <= c <= 9 for c in wanted):
            raise ValueError(f"wanted must hold digits 0 … 9, not {list(wanted)}")
        self.wanted = sorted(set(wanted))
        self.name = f"digit:{self.wanted[0]}" if len(self.wanted) == 1 else f"digits:{','.join(map(str, self.wanted))}"

    def __call__(self, samples: Tensor) -> Tensor:
        if as_pictures(samples, self.name).ndim != 4 or tuple(samples.shape[1:]) != (1, 28, 28):
            raise ValueError(f"the digit rewards read images (n, 1, 28, 28), not {tuple(samples.shape)}; use them with the model 'digits'")
        return torch.log_softmax(moved_to(samples, classifier())(samples), -1)[:, self.wanted].amax(-1)
