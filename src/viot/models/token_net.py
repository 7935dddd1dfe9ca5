"""A small transformer over tokens: the network of the embedded masked diffusion models."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..hub import embedded


class TokenNet(nn.Module):
    """Bidirectional pre-norm transformer: tokens (n, length) in 0 … vocabulary, the last one being the mask -> logits (n, length, vocabulary).

    It is not told the time: what is masked says it (Ou et al., arXiv 2406.03736). The mask has no logit, so it is never drawn.
    """

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = {"vocabulary": vocabulary, "length": length, "width": width, "depth": depth, "heads": heads}
        self.tokens = nn.Embedding(vocabulary + 1, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Logits of all positions, or (m, vocabulary) of those m where `at` (n, length) says so: the head is a good part of the work."""
        h = self.blocks(self.tokens(x) + self.positions)
        h = h if at is None else h[at]
        # Embedding and head are tied.
        return nn.functional.linear(h, self.tokens.weight[:-1], self.bias)


def read(folder: Path, device: str | torch.device) -> TokenNet:
    """The network that a folder of the package holds: its sizes in training.json, its weights in network.safetensors."""
    sizes = json.loads((folder / "training.json").read_text(encoding="utf-8"))["network"]
    return embedded(TokenNet(**sizes), folder / "network.safetensors").to(device)
