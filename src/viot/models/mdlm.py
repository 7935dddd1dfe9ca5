"""MDLM checkpoints (arXiv 2406.07524) in the layout of kuleshov-group/mdlm-owt: `viot.load("kuleshov-group/mdlm-owt", prompt=…)`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..hub import dtype_of
from .masked_lm import MaskedLM
from .published import Hub, laid_out, places, sizes, tokenizer_of, weights_of
from .tokens import NOTHING, given

#: The log-linear noise of MDLM ends a little before everything is masked: σ(t) = −log(1 − (1 − ε) t).
EPSILON = 1e-3


class DiT(nn.Module):
    """The diffusion transformer of MDLM (appendix C.2): rotary positions, LayerNorm modulated by the noise level (adaLN-zero), no causal mask.

    Tokens (n, length), `NOTHING` where there are none, and σ (n,) -> logits (n, length, vocabulary) float32. Its parameters have the names
    of the published files, without the `backbone.` before them.
    """

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, condition: int) -> None:
        super().__init__()
        self.vocab_embed = nn.ParameterDict({"embedding": torch.empty(vocabulary, width)})
        self.sigma_map = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(FREQUENCIES, condition), nn.SiLU(), nn.Linear(condition, condition))}
        )
        self.head_width = width // heads
        self.blocks = nn.ModuleList(Block(width, heads, condition) for _ in range(depth))
        self.output_layer = Head(width, vocabulary, condition)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        there = x != NOTHING
        seen = None if bool(there.all()) else there[:, None, None, :]
        h = self.vocab_embed["embedding"][x.clamp_min(0)]
        condition = functional.silu(self.sigma_map["mlp"](waves(sigma).to(h.dtype)))
        angle = (torch.arange(x.shape[1])[:, None] * frequencies(self.head_width)).repeat(1, 2).to(x.device)
        for block in self.blocks:
            h = block(h, condition, (angle.cos(), angle.sin()), seen)
        return self.output_layer(h, condition).float()


class Block(nn.Module):
    """Attention and a feed-forward network, each on a modulated LayerNorm and with a gate."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Linear(condition, 6 * width)

    def forward(self, h: Tensor, condition: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        # (n, length, 3 · width) -> three of (n, heads, length, width / heads).
        q, k, v = self.attn_qkv(self.norm1(h) * (1 + scale1) + shift1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(turned(q, turn), turned(k, turn), v, seen)
        h = h + gate1 * self.attn_out(mixed.transpose(1, 2).flatten(2))
        return h + gate2 * self.mlp(self.norm2(h) * (1 + scale2) + shift2)


class Head(nn.Module):
    def __init__(self, width: int, vocabulary: int, condition: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, bias=False)
        self.linear = nn.Linear(width, vocabulary)
        self.adaLN_modulation = nn.Linear(condition, 2 * width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.linear(self.norm_final(h) * (1 + scale) + shift)


#: Cosines and sines of the noise level.
FREQUENCIES = 256


def waves(sigma: Tensor) -> Tensor:
    """(n, 256) the cosines and sines of σ (n,) at frequencies from 1 down to 1/10 000."""
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device) / half)
    angle = sigma[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def frequencies(width: int) -> Tensor:
    """(width / 2,) by what angle each pair of entries turns from one position to the next."""
    return 1 / 10_000.0 ** (torch.arange(0, width, 2) / width)


def turned(v: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions: entry i and entry i + half of each head (…, length, width) turned by the angle of the position, in float32."""
    cos, sin = turn
    first, second = v.float().chunk(2, -1)
    return (v.float() * cos + torch.cat([-second, first], -1) * sin).to(v.dtype)


def read(source: str, config: Mapping[str, Any], revision: str | None = None) -> DiT:
    """The network of a checkpoint: sizes from its config.json, and exactly the weights that they ask for."""
    vocabulary, width, depth, heads, condition = sizes(source, config, "vocab_size", "hidden_dim", "n_blocks", "n_heads", "cond_dim")
    if width % (2 * heads):
        raise ValueError(f"config.json of {source} says hidden_dim={width} for n_heads={heads}, which does not divide into rotary pairs")
    with torch.device("meta"):
        network = DiT(vocabulary, width, depth, heads, condition)
    state = {key.removeprefix("backbone."): value for key, value in weights_of(source, revision).items()}
    wanted = network.state_dict()
    # The files hold one thing that follows from the sizes.
    turns = state.pop("rotary_emb.inv_freq", frequencies(width // heads)).float()
    if turns.shape != (width // heads // 2,) or not turns.allclose(frequencies(width // heads), rtol=1e-2):
        raise ValueError(f"{source} has other rotary positions than MDLM: 'backbone.rotary_emb.inv_freq' does not go by powers of 10 000")
    for what, keys in (("lacks", wanted.keys() - state.keys()), ("also holds", state.keys() - wanted.keys())):
        if keys:
            raise ValueError(f"{source} does not hold the weights of this MDLM: it {what} 'backbone.{min(keys)}'" + ", …" * (len(keys) > 1))
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            found, expected = tuple(state[key].shape), tuple(value.shape)
            raise ValueError(f"{source} does not hold the weights of this MDLM: 'backbone.{key}' has shape {found}, not {expected}")
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def load(
    source: str,
    config: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    length: int | None = None,
    prompt: str | list[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    **settings: Any,
) -> MaskedLM:
    """An MDLM checkpoint as a Model.

    tokenizer   of `transformers`, or the folder or repository of one; by default what lies in the folder itself, else GPT-2's
    length      of every sequence; by default, and at most, the length it was trained on
    prompt      as in MaskedLM. The model was trained on sequences that begin with <|endoftext|>, which is therefore given as the first token
                and is no part of the text; the next one ends the text, and another document may follow it in the same sequence
    settings    others of MaskedLM: order, remask, temperature, top_p, cached, …

    Weights are float32 unless a dtype is given. ValueError names a weight that is missing, left over or of another shape.
    """
    name = str(source)
    (longest,) = sizes(name, config, "model_length")
    length = longest if length is None else length
    if not 2 <= length <= longest:
        raise ValueError(f"length must be from 2 to {longest}, what {name} was trained on, not {length}")
    words = tokenizer_of(name, tokenizer, "gpt2", revision)
    begin = words.bos_token_id if words.bos_token_id is not None else words.cls_token_id
    end = words.eos_token_id if words.eos_token_id is not None else words.sep_token_id
    # As in training: the tokenizer's own mask, or one more token.
    mask = words.mask_token_id if words.mask_token_id is not None else config["vocab_size"] - 1
    if begin is None or end is None or len(words) > (config["vocab_size"] if words.mask_token_id is not None else mask):
        raise ValueError(
            f"this tokenizer ({len(words)} tokens, begin {begin}, end {end}) is not the one of {name}, which has {config['vocab_size']} tokens "
            f"with the mask; write tokenizer='./folder'"
        )
    network = read(name, config, revision).to(device=device, dtype=torch.float32 if dtype is None else dtype_of(dtype))
    timed = bool(config.get("time_conditioning"))
    prompts, pieces = [prompt] if isinstance(prompt, str) else prompt, Hub(words)
    start, skip = laid_out([[begin]] * len(prompts or [""]), [text(p, pieces, length - 1, mask, end) for p in prompts or [""]])

    def answer(x: Tensor, t: Tensor | None = None) -> Tensor:
        share = torch.zeros(len(x), device=x.device) if t is None else t.to(x.device, torch.float32)
        return network(x, -torch.log1p(-share.clamp_max(1 - EPSILON)))

    about = {"name": name, "model": "mdlm", "dtype": str(next(network.parameters()).dtype), "revision": revision}
    return MaskedLM(
        answer, pieces, length=start.shape[1], mask_id=mask, end_id=end, prompt=prompts, start=start, skip=skip, timed=timed,
        device=device, config=about, **settings,
    )  # fmt: skip


def text(prompt: str, tokenizer: Hub, room: int, mask: int, end: int) -> list[int]:
    """What a prompt gives, after the first token: all the room if its length is open, and else a whole text with one end token."""
    used, free = places(prompt, tokenizer)
    return given(prompt, tokenizer, room if free else min(room, used + 1), mask, end)
