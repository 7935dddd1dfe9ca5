"""The readers of small photographs: classifiers that steer, and the judge that must never steer."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

#: Pixels along a side of what the two embedded readers read.
SIDE = 16


def at(side: int, images: Tensor) -> Tensor:
    """Images of a multiple of this side in [0, 1], averaged over areas to it, and in [−1, 1]."""
    return F.adaptive_avg_pool2d(images, side) * 2 - 1


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut, as in CIFAR's ResNets (arXiv 1512.03385, 4.2)."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o),
        )  # fmt: skip
        plain = i == o and stride == 1
        self.shortcut = nn.Identity() if plain else nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        self.end = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.body(x) + self.shortcut(x))


class Classifier(nn.Module):
    """A small ResNet. Images (n, 3, 16, 16) in [0, 1], or of a multiple of that side -> logits (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(at(SIDE, x)))


class Judge(nn.Module):
    """A plain convolutional net without shortcuts, trained on augmented images: the referee. Shapes as `Classifier`.

    `features` gives the (n, 128) vectors before the last layer, in which distances between sets of images are measured.
    """

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o), nn.GELU())

        self.body = nn.Sequential(
            block(3, 32), block(32, 64), nn.MaxPool2d(2), block(64, 64), block(64, 128), nn.MaxPool2d(2), block(128, 128),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)

    def features(self, x: Tensor) -> Tensor:
        return self.body(at(SIDE, x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResNet20(nn.Module):
    """CIFAR's ResNet-20 (arXiv 1512.03385, 4.2), by the names of its most used weights: images (n, 3, 32, 32) in [0, 1] -> logits (n, 10).

    Its shortcuts have no weights: where the picture shrinks they take every second pixel and fill the new channels with zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Plain(16, 16) for _ in range(3)])
        self.layer2 = nn.Sequential(Plain(16, 32), Plain(32, 32), Plain(32, 32))
        self.layer3 = nn.Sequential(Plain(32, 64), Plain(64, 64), Plain(64, 64))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = (F.adaptive_avg_pool2d(x, 2 * SIDE) - self.mean) / self.std
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class Plain(nn.Module):
    """A block of ResNet-20."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.more = o - i
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, 2 if self.more else 1, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2)) if self.more else x
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)
