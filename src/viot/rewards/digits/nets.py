"""The two readers of digits: the classifier that steers, and the judge that must never steer."""

from __future__ import annotations

from torch import Tensor, nn


class Classifier(nn.Sequential):
    """Two 5x5 convolutions and a linear layer (arXiv 2506.20701, F.2). Images (n, 1, 28, 28) in [0, 1] -> logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 49, 10),
        )  # fmt: skip


class Judge(nn.Module):
    """A deeper reader with batch normalisation, trained on augmented images: the referee of every table. Shapes as `Classifier`.

    `features` gives the (n, 96) vectors before the last layer, in which distances between sets of images are measured.
    """

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())

        self.body = nn.Sequential(
            block(1, 24), block(24, 24, 2), block(24, 48), block(48, 48, 2), block(48, 96), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(96, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
