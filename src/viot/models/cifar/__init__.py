"""The embedded model of CIFAR-10 at 16x16: a UNet trained on photographs averaged down, by `recipes/cifar.py`, in diffusers format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..unet import UNet

FOLDER = Path(__file__).parent


def load(**settings: Any) -> UNet:
    """The model cifar16. `settings` are those of `UNet.from_pretrained`: device, compile, autocast."""
    return UNet.embedded(FOLDER, "cifar16", **settings)
