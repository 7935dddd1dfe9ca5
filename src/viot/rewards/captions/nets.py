"""The two networks that read a picture of the `captions` model: the reward's reader, and a judge that nobody steers by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .grammar import COLOURS, DIGITS, LAYOUTS, STROKES

SIZE = 48
#: The layout, and for each of the two places a digit, a colour and a stroke.
HEADS = {"layout": len(LAYOUTS)} | {
    f"{what}{place}": n for place in (0, 1) for what, n in (("digit", len(DIGITS)), ("colour", len(COLOURS)), ("stroke", len(STROKES)))
}


class Reader(nn.Module):
    """Images (n, 3, 48, 48) in [0, 1] -> log-probabilities of every head of `HEADS`, each (n, choices).

    `features` gives the vectors before the last layer, in which distances between sets of images are measured: of the judge (n, 864).
    """

    def __init__(self, widths: tuple[int, ...], activation: type[nn.Module], features: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), activation(), nn.MaxPool2d(2)]
            before = width
        side = SIZE >> len(widths)
        self.body = nn.Sequential(*layers, nn.Conv2d(before, features, 1), nn.Flatten(), activation())
        self.head = nn.Linear(features * side * side, sum(HEADS.values()))

    def features(self, images: Tensor) -> Tensor:
        return self.body(images * 2 - 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        out = self.head(self.features(images)).split(list(HEADS.values()), 1)
        return {name: torch.log_softmax(logits, 1) for name, logits in zip(HEADS, out, strict=True)}


def reader() -> Reader:
    """The reward's network: four layers."""
    return Reader((16, 32, 48, 64), nn.ReLU, 32)


def judge() -> Reader:
    """Wider and shallower, and trained on blurred and noisy pictures."""
    return Reader((24, 48, 96), nn.GELU, 24)
