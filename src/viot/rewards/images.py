"""What the rewards for images share: the published preprocessing as tensor operations, and the placing of a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from ..hub import dtype_of, moved_to


@dataclass(frozen=True)
class Preprocess:
    """Images (n, 3, H, W) in [0, 1] -> (n, 3, size, size), normalised: what the published code does to files, with gradients.

    size        of the square that the network reads
    fit         "crop": the shorter side becomes `size` and the middle is cut out; "pad": the longer side does, and black fills the rest
    odd         where a surplus that cannot be halved is cut: "floor", as transformers, or "even", as torchvision
    mean, std   of the three channels (CLIP's, which BLIP uses too)

    Resizing is bicubic (a = −1/2) with antialiasing, Pillow's. Published code that goes through Pillow rounds to whole grey levels between
    its two passes and after them; here nothing is rounded, so pixels differ by up to a grey level or two, 1/255 each.
    """

    size: int = 224
    fit: Literal["crop", "pad"] = "crop"
    odd: Literal["floor", "even"] = "floor"
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.fit == "crop":
            # int(size · long / short), in this order: the published code's rounding.
            high, wide = (int(self.size * side / min(height, width)) for side in (height, width))
        else:
            scale = self.size / max(height, width)
            high, wide = max(1, round(height * scale)), max(1, round(width * scale))
        if (high, wide) != (height, width):
            images = F.interpolate(images, (high, wide), mode="bicubic", antialias=True)
        if self.fit == "crop":
            # Pillow keeps whole grey levels, so what bicubic overshoots is lost. (The padding kind resizes floats, which keep it.)
            images = images.clamp(0, 1)
            top, left = self._half(high - self.size), self._half(wide - self.size)
            images = images[..., top : top + self.size, left : left + self.size]
        elif high < self.size or wide < self.size:
            top, left = (self.size - high) // 2, (self.size - wide) // 2
            images = F.pad(images, (left, self.size - wide - left, top, self.size - high - top))
        mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std

    def _half(self, surplus: int) -> int:
        return surplus // 2 if self.odd == "floor" else round(surplus / 2)


def as_pictures(samples: Any, who: str) -> Tensor:
    """What is a tensor of pixels at all, of any shape; a ValueError for texts."""
    if isinstance(samples, Tensor):
        return samples
    raise ValueError(
        f"the reward {who} reads pictures, and this model makes {'text' if isinstance(samples, list) else type(samples).__name__}"
    )


def as_videos(samples: Any, who: str, channels: Sequence[int] = (1, 3)) -> Tensor:
    """Images (n, C, H, W) or videos (n, F, C, H, W) as videos, an image as one of a single frame; a ValueError for anything else."""
    if isinstance(samples, Tensor) and samples.is_floating_point() and samples.ndim in (4, 5) and samples.shape[-3] in channels:
        return samples if samples.ndim == 5 else samples[:, None]
    got = f"{samples.dtype} of shape {tuple(samples.shape)}" if isinstance(samples, Tensor) else type(samples).__name__
    raise ValueError(
        f"the reward {who} reads images (n, C, H, W) or videos (n, F, C, H, W), C one of {', '.join(map(str, channels))}, floats in [0, 1], "
        f"not {got}"
    )


def one_per_sample(prompts: Any, n: int, who: str) -> list[str]:
    """The prompts as a list of n strings, or an error."""
    if prompts is None:
        raise ValueError(f"the reward {who} needs the prompts: one string for each of the {n} samples")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(prompts) != n or not all(isinstance(p, str) for p in prompts):
        strange = next((type(p).__name__ for p in prompts if not isinstance(p, str)), None)
        got = f"{len(prompts)} prompts" + (f", one of them {strange}" if strange else "")
        raise ValueError(f"the reward {who} needs one prompt, a string, for each of {n} samples; it got {got}")
    return prompts


class FrozenNetwork:
    """A reward that is a pretrained network: the base of those that are.

    network      used as it is given: put into eval mode, frozen, cast to `dtype`, and moved to the device of the samples
    preprocess   what its images go through before it
    dtype        the network computes in it (torch.bfloat16, "float16", …); scores are float32 (float64 if it is that)
    """

    differentiable = True
    name: str

    def __init__(self, network: nn.Module, preprocess: Preprocess, dtype: torch.dtype | str) -> None:
        self.dtype = dtype_of(dtype)
        self.network = network.eval().requires_grad_(False).to(self.dtype)
        self.preprocess = preprocess
        #: Of the arithmetic after the network.
        self.precision = torch.promote_types(self.dtype, torch.float32)

    def prepared(self, samples: Any) -> tuple[Tensor, int]:
        """What the network reads of these samples, (n·F, 3, size, size), and F; the network is moved beside them."""
        videos = as_videos(samples, self.name)
        moved_to(videos, self.network)
        images = videos.flatten(0, 1).to(torch.promote_types(videos.dtype, torch.float32))
        return self.preprocess(images.expand(-1, 3, -1, -1)).to(self.dtype), videos.shape[1]

    def framed(self, head: nn.Module, features: Tensor, frames: int) -> Tensor:
        """A head's scores of the features (n·F, d), the mean over each sample's frames: (n,). Features and head are brought to `precision`."""
        return head.to(features.device, self.precision)(features.to(self.precision)).reshape(-1, frames).mean(1)
