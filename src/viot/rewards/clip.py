"""How well an image fits a text, by the cosine of their CLIP embeddings: CLIP score, and PickScore, which people's choices trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from .. import hub
from .images import FrozenNetwork, Preprocess, one_per_sample

PICKSCORE = "yuvalkirstain/PickScore_v1"
#: Embeddings of texts that are kept, so that a prompt is read once and not at every step.
REMEMBERED = 1024


def pooled(answer: Any) -> Tensor:
    """The projected embedding, which transformers returns as a tensor up to version 4 and inside an object from version 5."""
    if isinstance(answer, Tensor):
        return answer
    embedding = getattr(answer, "image_embeds", None)
    return answer.pooler_output if embedding is None else embedding


class TwoTowers(FrozenNetwork):
    """r = scale · cos(E_image(x), E_text(prompt)) of a CLIP model; of a video the mean over its frames.

    network      a transformers CLIPModel
    tokenizer    callable(list of str, padding=, truncation=, max_length=, return_tensors=) -> {"input_ids": (n, L)}, as transformers' are
    text         one text for every sample; without it the reward asks for the prompts
    """

    scale = 1.0

    def __init__(self, network: nn.Module, tokenizer: Callable, preprocess: Preprocess, dtype: Any, text: str | None = None) -> None:
        super().__init__(network, preprocess, dtype)
        self.tokenizer, self.text = tokenizer, text
        self.asks = ("prompts",) if text is None else ()
        self._texts: dict[str, Tensor] = {}

    def __call__(self, samples: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        pixels, frames = self.prepared(samples)
        prompts = one_per_sample(prompts, len(samples), self.name) if self.text is None else [self.text] * len(samples)
        network: Any = self.network
        images = F.normalize(pooled(network.get_image_features(pixel_values=pixels)).to(self.precision), dim=-1)
        texts = self.texts(prompts, images.device)
        return self.scale * (images.unflatten(0, (-1, frames)) * texts[:, None]).sum(-1).mean(1)

    def texts(self, prompts: list[str], device: torch.device) -> Tensor:
        """Unit embeddings (n, d) of the prompts. Longer ones than the model reads (77 tokens) are cut, as the published code does."""
        known = self._texts
        if new := [p for p in dict.fromkeys(prompts) if p not in known]:
            network: Any = self.network
            length = network.config.text_config.max_position_embeddings
            tokens = self.tokenizer(new, padding="max_length", truncation=True, max_length=length, return_tensors="pt")["input_ids"]
            # No mask for the padding: the text tower looks only back, and is read at the end of the text.
            with torch.no_grad():
                found = F.normalize(pooled(network.get_text_features(input_ids=tokens.to(device))).to(self.precision), dim=-1)
            known |= dict(zip(new, found, strict=True))
        chosen = torch.stack([known[p].to(device) for p in prompts])
        while len(known) > REMEMBERED:
            known.pop(next(iter(known)))
        return chosen


class ClipScore(TwoTowers):
    """r = cos(E_image(x), E_text(prompt)), in [−1, 1]; some 0.15 to 0.35 for photographs. CLIPScore (arXiv 2104.08718) is 2.5 · max(r, 0).

    checkpoint   a CLIPModel with its tokenizer: a repository of the hub or a folder
    text         score every sample by this text, whatever its prompt: for models that have none
    dtype        the network computes in it; the scores are float32
    model, tokenizer   ready-made ones instead of the checkpoint's

    Raises OSError when the weights are not to be had, ValueError for samples that are no images.
    """

    def __init__(
        self,
        checkpoint: str = "openai/clip-vit-large-patch14",
        text: str | None = None,
        *,
        dtype: torch.dtype | str = torch.float32,
        model: nn.Module | None = None,
        tokenizer: Callable | None = None,
    ) -> None:
        instead = "clip:FOLDER"
        given: Any = hub.pretrained("CLIPModel", checkpoint, instead) if model is None else model
        reader: Any = hub.pretrained("AutoTokenizer", checkpoint, instead) if tokenizer is None else tokenizer
        super().__init__(given, reader, Preprocess(given.config.vision_config.image_size), dtype, text)
        self.checkpoint = checkpoint if model is None else type(model).__name__
        self.name = ":".join(["clip", self.checkpoint, *([text] if text else [])])


class PickScore(TwoTowers):
    """r = exp(s) · cos(E_image(x), E_text(prompt)) with the model's learnt scale s (exp(s) ≈ 100); some 18 to 24. arXiv 2305.01569.

    The published score, scale included. Many training papers divide it by 26 and some leave the scale out: λ is that much larger there.

    checkpoint   a repository of the hub or a folder
    processor    where the tokenizer is: the published code takes it from the model that PickScore started from
    dtype        the network computes in it; the scores are float32
    model, tokenizer   ready-made ones instead

    Raises OSError when the weights are not to be had, ValueError for samples that are no images.
    """

    def __init__(
        self,
        checkpoint: str = PICKSCORE,
        processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        *,
        dtype: torch.dtype | str = torch.float32,
        model: nn.Module | None = None,
        tokenizer: Callable | None = None,
    ) -> None:
        given: Any = hub.pretrained("CLIPModel", checkpoint, "pickscore:FOLDER") if model is None else model
        reader: Any = hub.pretrained("AutoTokenizer", processor, "PickScore(processor=FOLDER)") if tokenizer is None else tokenizer
        # Before the cast: half a precision would move every score by the same rounding.
        self.scale = float(given.logit_scale.detach().double().exp())
        super().__init__(given, reader, Preprocess(given.config.vision_config.image_size), dtype)
        self.name = "pickscore" if checkpoint == PICKSCORE else f"pickscore:{checkpoint}"
