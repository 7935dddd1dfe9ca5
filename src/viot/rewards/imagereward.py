"""ImageReward: how much people like an image for a text, by a BLIP network that reads both together."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import hub
from ..optional import need
from .aesthetic import Head
from .images import FrozenNetwork, Preprocess, one_per_sample

REPOSITORY = "THUDM/ImageReward"
#: Of the raw score over the published validation set: the reward is standardised by them.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
#: Tokens of a prompt that are read, [CLS] and [SEP] included.
LENGTH = 35

# BLIP's ViT-L/16 and BERT-base with cross-attention. transformers builds the cross-attention for what it calls a decoder; it still looks both ways.
VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "patch_size": 16,
    "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT = {
    "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "is_decoder": True,
    "pad_token_id": 0, "bos_token_id": 30522, "eos_token_id": 2, "sep_token_id": 102,
}  # fmt: skip

# The published names on the left, without `blip.visual_encoder.`.
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_BLOCK = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection"}
# BLIP's contrastive heads, which the reward does not use, and a table of 0, 1, 2, …
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|.*\.position_ids$")


def from_published(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights of `ImageReward.pt` for transformers' BLIP: {"vision": …, "text": …, "head": …}. A ValueError names what has no place."""
    out: dict[str, dict[str, Tensor]] = {"vision": {}, "text": {}, "head": {}}
    for key, value in state.items():
        if _UNUSED.match(key):
            continue
        part, _, rest = key.removeprefix("blip.").partition(".")
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", rest)
        if part == "visual_encoder" and rest in _VISION:
            out["vision"][_VISION[rest]] = value
        elif part == "visual_encoder" and block:
            # The perceptron's layers have the same names.
            out["vision"][f"encoder.layers.{block[1]}.{_BLOCK.get(block[2], block[2])}.{block[3]}"] = value
        elif part == "text_encoder":
            out["text"][rest] = value
        elif part == "mlp":
            out["head"][rest] = value
        else:
            raise ValueError(f"{key!r} is no weight of ImageReward")
    return out


class Blip(nn.Module):
    """BLIP reading an image and a text together: pixels (n, 3, H, W), tokens and mask (n, L) -> what it makes of the first token (n, d).

    vision   a transformers BlipVisionModel
    text     a transformers BlipTextModel with cross-attention, which looks at the patches from every token
    """

    def __init__(self, vision: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.vision, self.text = vision, text

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        patches = self.vision(pixel_values=pixels).last_hidden_state
        return self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=patches).last_hidden_state[:, 0]


class ImageReward(FrozenNetwork):
    """r = (head(BLIP(x, prompt)) − 0.167) / 1.033: mean 0 and variance 1 over its authors' data, mostly within ±2. arXiv 2304.05977.

    The first token is BERT's [CLS], not BLIP's [ENC]: the published code makes [ENC] known to the tokenizer and then does not put it in. Prompts
    are read up to 35 tokens. Of a video the mean over its frames.

    checkpoint   a repository of the hub, or a file: the published `ImageReward.pt`
    tokenizer    where BERT's tokenizer is, or a ready-made one
    dtype        the network computes in it; the head and the scores are float32
    model, head  a ready-made `Blip` and a module (n, d) -> (n,) instead of the checkpoint

    Raises OSError when the weights are not to be had, ValueError for samples that are no images.
    """

    def __init__(
        self,
        checkpoint: str = REPOSITORY,
        *,
        tokenizer: str | Callable = "google-bert/bert-base-uncased",
        dtype: torch.dtype | str = torch.float32,
        model: Blip | None = None,
        head: nn.Module | None = None,
    ) -> None:
        if (model is None) != (head is None):
            raise ValueError("ImageReward takes a ready-made model and its head together, or neither")
        network, last = self._published(checkpoint) if model is None or head is None else (model, head)
        config: Any = network.vision.config
        super().__init__(network, Preprocess(config.image_size, odd="even"), dtype)
        self.head = last.eval().requires_grad_(False)
        self.name = "imagereward" if checkpoint == REPOSITORY else f"imagereward:{checkpoint}"
        self.tokenizer = self._tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer

    @staticmethod
    def _published(checkpoint: str) -> tuple[Blip, Head]:
        file = hub.published(checkpoint, "ImageReward.pt", "imagereward:FILE")
        state, transformers = from_published(hub.state_dict(file)), need("transformers", "rewards")
        vision = hub.built("BlipVisionModel", transformers.BlipVisionConfig(**VISION), state["vision"], str(file))
        text = hub.built("BlipTextModel", transformers.BlipTextConfig(**TEXT), state["text"], str(file), add_pooling_layer=False)
        head = Head(TEXT["hidden_size"])
        try:
            head.load_state_dict(state["head"])
        except RuntimeError as error:
            raise ValueError(f"{Path(file).name} does not hold ImageReward's head, linear layers 768 → 1024 → 128 → 64 → 16 → 1") from error
        return Blip(vision, text), head

    @staticmethod
    def _tokenizer(source: str) -> Any:
        tokenizer = hub.pretrained("AutoTokenizer", source, "ImageReward(tokenizer=FOLDER)")
        # The published vocabulary has these two more, in this order. A prompt that spells them is read as they are.
        tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        return tokenizer

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels, frames = self.prepared(samples)
        prompts = one_per_sample(prompts, len(samples), self.name)
        read = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        tokens, mask = (read[key].to(pixels.device).repeat_interleave(frames, 0) for key in ("input_ids", "attention_mask"))
        return (self.framed(self.head, self.network(pixels, tokens, mask), frames) - MEAN) / STD
