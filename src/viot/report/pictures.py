"""Samples as pictures. Pillow is imported when the first one is made."""

from __future__ import annotations

import base64
import ctypes
import io
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..optional import need

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..population import Population

MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def to_pil(image: Tensor) -> Image:
    """One image (C, H, W) with values in [0, 1] and 1, 3 or 4 channels, as a PIL image."""
    pil = need("PIL.Image", "report")
    if image.ndim != 3 or image.shape[0] not in MODES:
        raise ValueError(f"to_pil takes one image (C, H, W) with 1, 3 or 4 channels, not {tuple(image.shape)}")
    bytes_ = image.detach().float().nan_to_num(nan=0.0).clamp(0, 1).mul(255).round().to("cpu", torch.uint8).permute(1, 2, 0).contiguous()
    # Straight from the tensor's memory: torch reaches NumPy arrays only where NumPy is installed, which viot does not ask for.
    return pil.frombytes(MODES[len(image)], (image.shape[2], image.shape[1]), ctypes.string_at(bytes_.data_ptr(), bytes_.numel()))


def frame(sample: Tensor, frames: int = 4) -> Tensor:
    """The picture (C, H, W) of a sample: an image itself, of a video (F, C, H, W) a strip of frames from its length."""
    if sample.ndim == 3:
        return sample
    shown = torch.linspace(0, len(sample) - 1, min(frames, len(sample))).round().long()
    return torch.cat(list(sample[shown]), dim=-1)


def order(population: Population) -> Tensor:
    """(G, K) positions by falling weight, and by falling reward where weights are equal."""
    by_reward = population.rewards.nan_to_num(nan=-math.inf).argsort(dim=-1, descending=True, stable=True)
    # Equal weights that differ in the last bit are equal.
    w = (population.weights.gather(-1, by_reward) * 1e9).round()
    return by_reward.gather(-1, w.argsort(dim=-1, descending=True, stable=True))


def fitted(image: Image, smallest: int, largest: int) -> Image:
    """Small pictures enlarged by whole factors without blur, so that every pixel is seen; large ones reduced."""
    pil = need("PIL.Image", "report")
    side = max(image.size)
    if side > largest:
        return image.resize((max(1, image.width * largest // side), max(1, image.height * largest // side)), pil.Resampling.LANCZOS)
    factor = max(1, smallest // side)
    return image.resize((image.width * factor, image.height * factor), pil.Resampling.NEAREST)


def data_uri(sample: Tensor, largest: int = 320) -> str:
    """A sample as the address of an inline picture: PNG for small ones, JPEG for photographs."""
    image = to_pil(frame(sample))
    drawn = max(image.size) <= 128 or image.mode == "RGBA"
    image = fitted(image, 1, largest)
    buffer = io.BytesIO()
    if drawn:
        kind = "png"
        image.save(buffer, format="PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(buffer, format="JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
