"""The embedded model of CIFAR-10 at 16x16: a UNet trained on photographs averaged down, by `recipes/cifar.py`, in diffusers format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..unet import UNet

FOLDER = Path(__file__).parent


def load(**settings: Any) -> UNet:
    """The model cifar16. `settings` are those of `UNet.from_pretrained`: device, compile, autocast."""
    patch = json.loads((FOLDER / "training.json").read_text())["patch"]
    model = UNet.from_pretrained(FOLDER, patch=patch, **settings)
    model.config["name"] = "cifar16"
    return model
