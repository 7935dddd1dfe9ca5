"""The embedded model of film reviews: sentences by masked diffusion word by word, trained by `recipes/text.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...optional import need
from ..masked_lm import MaskedLM
from ..token_net import read
from ..tokens import Pieces

FOLDER = Path(__file__).parent


def load(**settings: Any) -> MaskedLM:
    """The reviews model: sentences of up to 32 words and marks, in lower case. `settings` are those of `MaskedLM`: prompt, order, cached, device, …"""
    tokenizer = Pieces(need("tokenizers", "text").Tokenizer.from_file(str(FOLDER / "tokenizer.json")))
    network = read(FOLDER, settings.get("device", "cpu"))
    # Token 1 stands for all words that the model does not know. Where one would have been, it says another.
    return MaskedLM(
        network,
        tokenizer,
        length=32,
        mask_id=6144,
        end_id=0,
        barred=(1,),
        at_masks=True,
        padded=True,
        config={"name": "reviews"},
        **settings,
    )
