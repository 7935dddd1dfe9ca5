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
PAPER, RULE, MARK = (250, 250, 249), (203, 203, 200), (213, 94, 0)


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
    image = fitted(to_pil(frame(sample)), 1, largest)
    buffer = io.BytesIO()
    if max(image.size) <= 128 or image.mode == "RGBA":
        kind = "png"
        image.save(buffer, format="PNG", optimize=True)
    else:
        kind = "jpeg"
        image.save(buffer, format="JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(population: Population, max_per_group: int = 64) -> Image:
    """All samples on one sheet: groups from top to bottom between thin rules, the heaviest first, the best of each group framed."""
    pil, draw = need("PIL.Image", "report"), need("PIL.ImageDraw", "report")
    if population.modality not in ("images", "video"):
        raise TypeError(f"these samples are {population.modality}; a contact sheet is made of images")
    g, k = population.shape
    n = min(k, max_per_group)
    chosen = order(population)[:, :n].tolist()
    first = fitted(to_pil(frame(population.samples[0, 0])), 96, 256)
    (width, height), gap, between = first.size, 5, 17
    columns = min(n, 16 if g > 1 else math.ceil(math.sqrt(1.6 * n * height / width)))
    rows = math.ceil(n / columns)
    band = rows * (height + gap) - gap
    sheet = pil.new("RGB", (columns * (width + gap) - gap + 2 * between, g * (band + between) + between), PAPER)
    pen = draw.Draw(sheet)
    for i in range(g):
        top = between + i * (band + between)
        if i:
            pen.line((between, top - between // 2 - 1, sheet.width - between - 1, top - between // 2 - 1), fill=RULE)
        best = population.rewards[i].nan_to_num(nan=-math.inf).argmax().item()
        for j, particle in enumerate(chosen[i]):
            x, y = between + j % columns * (width + gap), top + j // columns * (height + gap)
            picture = fitted(to_pil(frame(population.samples[i, particle])), 96, 256)
            sheet.paste(picture, (x, y), picture if picture.mode == "RGBA" else None)
            if particle == best:
                pen.rectangle((x - 3, y - 3, x + width + 2, y + height + 2), outline=MARK, width=2)
    return sheet
