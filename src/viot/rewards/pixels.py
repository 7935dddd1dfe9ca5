"""Rewards that look at nothing but pixels: images float32 in [0, 1], (n, C, H, W)."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from .images import as_pictures


class Brightness:
    """Mean pixel value, between 0 and 1."""

    name, differentiable = "brightness", True

    def __call__(self, samples: Tensor) -> Tensor:
        return as_pictures(samples, self.name).flatten(1).mean(1)


class Jpeg:
    """Minus the size in kilobytes of the image as a JPEG (compressibility of arXiv 2305.13301): highest for smooth images."""

    differentiable = False

    def __init__(self, quality: int = 95) -> None:
        if not 1 <= quality <= 100:
            raise ValueError(f"JPEG quality is between 1 and 100, not {quality}")
        self.quality, self.name = quality, f"jpeg:{quality}"

    def __call__(self, samples: Tensor) -> Tensor:
        from ..report.pictures import to_pil

        sizes = []
        for image in as_pictures(samples, self.name):
            buffer = io.BytesIO()
            to_pil(image).convert("L" if image.shape[0] == 1 else "RGB").save(buffer, format="JPEG", quality=self.quality)
            sizes.append(buffer.tell())
        return -torch.tensor(sizes, dtype=torch.float64) / 1000
