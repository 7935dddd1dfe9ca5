"""Human preference score v2.1: which image people prefer for a text. A CLIP ViT-H/14 of open_clip, carried over to transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import hub
from ..optional import need
from .clip import TwoTowers
from .images import Preprocess

FILES = {"2.1": "HPS_v2.1_compressed.pt", "2.0": "HPS_v2_compressed.pt"}

#: open_clip's ViT-H-14: CLIP's own constants, GELU instead of its quick approximation.
VIT_H_14: dict[str, Any] = {
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_act": "gelu",
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "hidden_act": "gelu",
        "image_size": 224, "patch_size": 14,
    },
}  # fmt: skip

# open_clip's names on the left. Inside a block:
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_WHOLE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    # (The misspelling is transformers' own.)
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
# Stored as x @ P; transformers keeps the transpose.
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an open_clip vision transformer under the names of a transformers CLIPModel. A ValueError names what has no place."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)(\.|_)(weight|bias)", key)
        if key in _WHOLE:
            out[_WHOLE[key]] = value
        elif key in _TRANSPOSED:
            out[_TRANSPOSED[key]] = value.T.contiguous()
        elif block and block[3] == "attn.in_proj":
            # Query, key and value are stacked.
            for name, part in zip("qkv", value.chunk(3), strict=True):
                out[f"{_layer(block)}.self_attn.{name}_proj.{block[5]}"] = part.contiguous()
        elif block and block[3] in _BLOCK:
            out[f"{_layer(block)}.{_BLOCK[block[3]]}.{block[5]}"] = value
        elif key != "attn_mask":
            raise ValueError(f"{key!r} is no weight of an open_clip vision transformer with its text tower")
    return out


def _layer(block: re.Match[str]) -> str:
    return f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"


class HPS(TwoTowers):
    """r = cos(E_image(x), E_text(prompt)) of HPS v2.1 (arXiv 2306.09341), without CLIP's scale, as published; some 0.2 to 0.35.

    Only scores of the same prompt and version compare. Images are padded to a square, not cut. Of a video the mean over its frames.

    version     "2.1", "2.0", or a file: the published `.pt`
    tokenizer   where CLIP's tokenizer is, or a ready-made one
    dtype       the network computes in it; the scores are float32
    model       a ready-made CLIPModel instead

    Raises OSError when the weights are not to be had, ValueError for samples that are no images.
    """

    def __init__(
        self,
        version: str = "2.1",
        *,
        tokenizer: str | Callable = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        dtype: torch.dtype | str = torch.float32,
        model: nn.Module | None = None,
    ) -> None:
        version = version.removeprefix("v")
        given: Any = self._published(version) if model is None else model
        reader: Any = hub.pretrained("AutoTokenizer", tokenizer, "HPS(tokenizer=FOLDER)") if isinstance(tokenizer, str) else tokenizer
        super().__init__(given, reader, Preprocess(given.config.vision_config.image_size, fit="pad"), dtype)
        self.name = f"hps:{version}" if model is None else "hps"

    @staticmethod
    def _published(version: str) -> nn.Module:
        if version not in FILES and not Path(version).is_file():
            raise ValueError(f"HPS has the versions {' and '.join(FILES)}, or is a file; {version!r} is neither")
        file = hub.published("xswu/HPSv2" if version in FILES else version, FILES.get(version, ""), "hps:FILE")
        config = need("transformers", "rewards").CLIPConfig(**VIT_H_14)
        return hub.built("CLIPModel", config, from_open_clip(hub.state_dict(file)), str(file))
