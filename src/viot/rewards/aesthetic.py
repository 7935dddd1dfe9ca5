"""How much people like the look of an image: the LAION aesthetic predictor, a small head on CLIP's image embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from .. import hub
from .clip import pooled
from .images import FrozenNetwork, Preprocess

OPENAI = "openai/clip-vit-large-patch14"
#: The published head as the affine map that it is; see `Head.affine`.
EMBEDDED = Path(__file__).parent / "aesthetic.safetensors"


class Head(nn.Module):
    """The perceptron width → 1024 → 128 → 64 → 16 → 1 that LAION's predictor and ImageReward publish: (n, width) -> (n,).

    It has dropout between its layers and no activations, so once it is trained it is an affine map.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024), nn.Dropout(0.2),
            nn.Linear(1024, 128), nn.Dropout(0.2),
            nn.Linear(128, 64), nn.Dropout(0.1),
            nn.Linear(64, 16), nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)

    def affine(self) -> dict[str, Tensor]:
        """The same map as one weight (width,) and one bias (), multiplied out in double precision."""
        linear = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        weight, bias = torch.eye(linear[0].in_features, dtype=torch.float64), torch.zeros(linear[0].in_features, dtype=torch.float64)
        for layer in linear:
            w, b = layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()
            weight, bias = w @ weight, w @ bias + b
        return {"weight": weight[0].float(), "bias": bias[0].float()}


class Affine(nn.Module):
    """(n, width) -> (n,): w·x + b."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def head_of(file: str | Path | None) -> nn.Module:
    """The head that comes with the package, or a published one (`.pth` or `.safetensors`, a state dict of `Head`)."""
    if file is None:
        return Affine(**hub.state_dict(EMBEDDED))
    if not Path(file).is_file():
        raise OSError(f"there is no head {file}; leave `head` out for the one that comes with the package")
    state = hub.state_dict(Path(file))
    try:
        head = Head(state["layers.0.weight"].shape[1])
        head.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is no head of the aesthetic predictor, linear layers width → 1024 → 128 → 64 → 16 → 1") from error
    return head


class Aesthetic(FrozenNetwork):
    """r = head(E_image(x) / |E_image(x)|), on the scale 1 to 10 of its raters; most images lie between 4 and 7. No prompt.

    LAION's "improved aesthetic predictor", sac+logos+ava1-l14-linearMSE: the reward of DDPO (arXiv 2305.13301) and of most work since. Its head
    (Apache-2.0) comes with the package. Of a video the mean over its frames.

    checkpoint   OpenAI's CLIP ViT-L/14, whose embeddings the head knows: a repository of the hub or a folder
    head         another published head, a file; or a module (n, d) -> (n,)
    dtype        the network computes in it; the head and the scores are float32
    model        a ready-made CLIPModel or CLIPVisionModelWithProjection instead of the checkpoint

    Raises OSError when the weights are not to be had, ValueError for samples that are no images.
    """

    def __init__(
        self,
        checkpoint: str = OPENAI,
        head: str | Path | nn.Module | None = None,
        *,
        dtype: torch.dtype | str = torch.float32,
        model: nn.Module | None = None,
    ) -> None:
        given: Any = hub.pretrained("CLIPVisionModelWithProjection", checkpoint, "aesthetic:FOLDER") if model is None else model
        size = getattr(given.config, "vision_config", given.config).image_size
        super().__init__(given, Preprocess(size, odd="even"), dtype)
        chosen: nn.Module = head if isinstance(head, nn.Module) else head_of(head)
        self.head = chosen.eval().requires_grad_(False)
        self.name = "aesthetic" if checkpoint == OPENAI else f"aesthetic:{checkpoint}"

    def __call__(self, samples: Tensor) -> Tensor:
        pixels, frames = self.prepared(samples)
        network: Any = self.network
        answer = network.get_image_features(pixel_values=pixels) if hasattr(network, "get_image_features") else network(pixel_values=pixels)
        return self.framed(self.head, F.normalize(pooled(answer).to(self.precision), dim=-1), frames)
