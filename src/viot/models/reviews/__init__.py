"""The embedded model of film reviews: sentences by masked diffusion over word pieces, trained by `recipes/text.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...optional import need
from ..masked_lm import MaskedLM
from ..token_net import read
from ..tokens import Pieces

FOLDER = Path(__file__).parent


def load(**settings: Any) -> MaskedLM:
    """The reviews model: sentences of up to forty pieces, in lower case. `settings` are those of `MaskedLM`: prompt, order, cached, device, …"""
    tokenizer = Pieces(need("tokenizers", "text").Tokenizer.from_file(str(FOLDER / "tokenizer.json")))
    network = read(FOLDER, settings.get("device", "cpu"))
    config = {"name": "reviews"}
    return MaskedLM(network, tokenizer, length=40, mask_id=4096, end_id=0, config=config, **settings)
