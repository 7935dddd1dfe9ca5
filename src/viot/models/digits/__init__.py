"""The embedded model of handwritten digits: a UNet trained on MNIST by `recipes/digits.py`, in diffusers format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..unet import UNet

FOLDER = Path(__file__).parent


def load(**settings: Any) -> UNet:
    """The digits model. `settings` are those of `UNet.from_pretrained`: device, compile, autocast."""
    return UNet.embedded(FOLDER, "digits", **settings)
