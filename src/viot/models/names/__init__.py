"""The embedded model of first names, letter by letter: masked diffusion, trained by `recipes/text.py`."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from typing import Any

from ..masked_lm import MaskedLM
from ..token_net import read
from ..tokens import Letters

FOLDER = Path(__file__).parent


def load(**settings: Any) -> MaskedLM:
    """The names model: up to twelve letters a–z. `settings` are those of `MaskedLM`: prompt, order, remask, cached, device, …"""
    network = read(FOLDER, settings.get("device", "cpu"))
    return MaskedLM(
        network,
        Letters(ascii_lowercase),
        length=12,
        mask_id=27,
        end_id=26,
        at_masks=True,
        padded=True,
        config={"name": "names"},
        **settings,
    )
