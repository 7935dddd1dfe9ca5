"""LLaDA checkpoints (arXiv 2502.09992) in the layout of GSAI-ML/LLaDA-8B-Instruct: `viot.load("GSAI-ML/LLaDA-8B-Instruct", prompt=…)`.

The network is a LLaMA that looks both ways. The published files come with code of their own, which is not run: their weights are put into
the LLaMA of `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hub import built, dtype_of
from ..optional import need
from .masked_lm import MaskedLM
from .published import Hub, laid_out, places, sizes, tokenizer_of, weights_of
from .tokens import FREE, NOTHING, given

#: What the published configurations say, where anything else would be another network. Entries that are not there count as these.
ONLY: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "activation_type": ("silu",),
    "rope": (True,),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "multi_query_attention": (None, False),
    "block_group_size": (1,),
}

#: Names of weights: LLaDA's and those of the LLaMA of transformers.
OUTSIDE = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
INSIDE = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


class BothWays:
    """A causal language model of `transformers` without its causal mask: tokens (n, length), `NOTHING` where there are none -> logits.

    Positions are counted from the first token that there is, and nobody sees a place where there is nothing.
    """

    def __init__(self, network: Any, filling: int) -> None:
        self.network, self.filling = network, filling

    def __call__(self, x: Tensor) -> Tensor:
        there = x != NOTHING
        n, length = x.shape
        # A mask of four dimensions is taken as it is, added to the attention logits.
        hidden = torch.zeros(n, 1, length, length, dtype=self.network.dtype, device=x.device)
        hidden.masked_fill_(~there[:, None, None, :], torch.finfo(hidden.dtype).min)
        position = (there.cumsum(1) - 1).clamp_min(0)
        tokens = torch.where(there, x, self.filling)
        return self.network(input_ids=tokens, attention_mask=hidden, position_ids=position, use_cache=False).logits.float()


def read(source: str, config: Mapping[str, Any], dtype: torch.dtype, revision: str | None = None) -> Any:
    """The network of a checkpoint as `transformers.LlamaForCausalLM`, with exactly the weights that its config.json asks for."""
    if "n_layers" not in config:
        kind = (config.get("architectures") or ["?"])[0]
        raise ValueError(f"{source} is a {kind}, not a LLaDA in the layout of GSAI-ML/LLaDA-8B-Base; put it into MaskedLM(network, …)")
    for name, values in ONLY.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"config.json of {source} says {name}={config[name]!r}; only LLaDA with {name}={values[0]!r} can be loaded")
    width, depth, heads, longest = sizes(source, config, "d_model", "n_layers", "n_heads", "max_sequence_length")
    tied = bool(config.get("weight_tying"))
    state = {_renamed(source, key): value.to(dtype) for key, value in weights_of(source, revision).items()}
    if tied and "model.embed_tokens.weight" in state:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    llama = need("transformers", "text").LlamaConfig(
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        hidden_size=width,
        intermediate_size=config.get("mlp_hidden_size") or config["mlp_ratio"] * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=config.get("n_kv_heads") or heads,
        hidden_act="silu",
        max_position_embeddings=longest,
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_theta=float(config.get("rope_theta", 10_000.0)),
        tie_word_embeddings=tied,
        attention_bias=False,
        mlp_bias=False,
    )
    # What the keyword is called depends on the version of transformers.
    named = "dtype" if hasattr(llama, "dtype") else "torch_dtype"
    return built("LlamaForCausalLM", llama, state, source, **{named: dtype}).eval().requires_grad_(False)


def _renamed(source: str, key: str) -> str:
    """The name that transformers has for a weight of LLaDA."""
    if key in OUTSIDE:
        return OUTSIDE[key]
    head, _, rest = key.partition("model.transformer.blocks.")
    number, _, name = rest.removesuffix(".weight").partition(".")
    if head or not number.isdigit() or name not in INSIDE or not rest.endswith(".weight"):
        raise ValueError(f"{source} does not hold the weights of this LLaDA: it also holds {key!r}")
    return f"model.layers.{number}.{INSIDE[name]}.weight"


def load(
    source: str,
    config: Mapping[str, Any],
    *,
    tokenizer: Any = None,
    new_tokens: int = 128,
    chat: bool | None = None,
    prompt: str | list[str] | None = None,
    order: Any = "confidence",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    **settings: Any,
) -> MaskedLM:
    """A LLaDA checkpoint as a Model.

    tokenizer   of `transformers`, or the folder or repository of one; by default what lies beside the weights
    new_tokens  how many places a prompt of open length leaves free
    chat        put each plain prompt into the tokenizer's chat template, as what the user says: the text is the answer. By default where
                there is a template, unless the checkpoint's name ends in "base". A prompt with free places is never put into it
    prompt      one text, or a list of texts of any lengths, one group each. Without chat, the text begins with it
    settings    others of MaskedLM: block (tokens per block), remask, temperature, top_p, cached, …

    Every prompt has as many free places as if it were alone: rows are as long as the longest, and what the others lack is hidden from the
    network. Weights have the dtype of the config.json (bfloat16 as published) unless one is given. ValueError names a weight that is
    missing, left over or of another shape.
    """
    name = str(source)
    if new_tokens < 1:
        raise ValueError(f"new_tokens must be at least 1, not {new_tokens}")
    words = tokenizer_of(name, tokenizer, None, revision)
    mask, end = config.get("mask_token_id"), config.get("eos_token_id")
    mask = words.mask_token_id if mask is None else mask
    end = words.eos_token_id if end is None else end
    if mask is None or end is None:
        raise ValueError(f"neither config.json nor the tokenizer of {name} says which token is the mask ({mask}) and which the end ({end})")
    templated = getattr(words, "chat_template", None) is not None
    # The base model's tokenizer may have a template too, which it was not trained on.
    talks = (templated and not name.lower().rstrip("/").endswith("base")) if chat is None else chat
    if chat and not templated:
        raise ValueError(f"the tokenizer of {name} has no chat template; leave chat out, or take the Instruct model")
    prompts, pieces = [prompt] if isinstance(prompt, str) else prompt, Hub(words)
    rows = [_row(p, pieces, talks and bool(p), new_tokens, mask, end) for p in prompts or [""]]
    start, skip = laid_out([head for head, _ in rows], [text for _, text in rows])
    if (needed := max(len(head) + len(text) for head, text in rows)) > config.get("max_sequence_length", needed):
        raise ValueError(
            f"prompt and answer take {needed} tokens, and {name} has room for {config['max_sequence_length']}: less new_tokens?"
        )
    precision = dtype_of(dtype or config.get("torch_dtype") or config.get("dtype") or torch.float32)
    network = BothWays(read(name, config, precision, revision).to(device), end)
    about = {"name": name, "model": "llada", "dtype": str(precision), "revision": revision, "new_tokens": new_tokens, "chat": talks}
    return MaskedLM(
        network, pieces, length=start.shape[1], mask_id=mask, end_id=end, prompt=prompts, order=order, start=start, skip=skip,
        device=device, config=about, **settings,
    )  # fmt: skip


def _row(prompt: str, tokenizer: Hub, chat: bool, new: int, mask: int, end: int) -> tuple[list[int], list[int]]:
    """What comes before the text, and what is given of the text, with the free places."""
    if chat and not FREE.search(prompt):
        return said(tokenizer.tokenizer, [{"role": "user", "content": prompt}]), [mask] * new
    begins = list(tokenizer.tokenizer("")["input_ids"])[:1]
    head = begins if begins == [tokenizer.tokenizer.bos_token_id] else []
    used, free = places(prompt, tokenizer)
    return head, given(prompt, tokenizer, used + new if free else used, mask, end)


def said(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a conversation, up to where the answer begins."""
    written = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(written, add_special_tokens=False)["input_ids"])
