"""Published masked language models: what their folders hold, read without running anybody's code."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hub import missing, pretrained, state_dict
from ..optional import need
from .tokens import FREE, NOTHING

#: What can be read, by `model_type` of config.json.
KINDS = ("mdlm", "llada")
#: Where weights are looked for, in this order.
WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


class Hub:
    """A tokenizer of `transformers` as one of ours. Special tokens have no text.

    A character whose bytes are spread over tokens is the piece of the last of them, so that the pieces of any tokens, joined, are what
    `tokenizer.decode` makes of them.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        decoders = need("tokenizers.decoders", "text")
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        self.table = self._bytes() if isinstance(decoder, decoders.ByteLevel) else None

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def pieces(self, ids: list[int]) -> list[str]:
        if self.table is None:
            return self._grown(ids)
        out: list[str] = []
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        for i, token in enumerate(ids):
            known = self.table.get(token, b"") if token >= 0 else None
            if known is None and out:
                # Nothing follows what a free place cuts off.
                out[-1] += characters.decode(b"", final=True)
                characters.reset()
            out.append(characters.decode(known or b"", final=i == len(ids) - 1))
        return out

    def _bytes(self) -> dict[int, bytes]:
        """The bytes of every token of a byte-level vocabulary, which spells them with printable characters (GPT-2)."""
        printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = (b for b in range(256) if b not in printable)
        byte = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
        added = self.tokenizer.added_tokens_decoder
        # What is spelled otherwise is text as it is.
        table = {
            i: bytes(byte[c] for c in piece) if all(c in byte for c in piece) else piece.encode()
            for piece, i in self.tokenizer.get_vocab().items()
        }
        return table | {i: b"" if token.special else token.content.encode() for i, token in added.items()}

    def _grown(self, ids: list[int]) -> list[str]:
        """By what each token adds to the text, for any tokenizer whose texts grow with their tokens."""
        out, before, text = [], "", ""
        for i in range(len(ids)):
            text = self._text(ids[: i + 1])
            whole = text.startswith(before) and not text.endswith("\ufffd")
            out.append(text[len(before) :] if whole else "")
            before = text if whole else before
        if out and text.startswith(before):
            out[-1] += text[len(before) :]
        return out

    def _text(self, ids: list[int]) -> str:
        known = [i for i in ids if 0 <= i < len(self.tokenizer)]
        return self.tokenizer.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def config_of(source: str | Path, revision: str | None = None) -> dict[str, Any] | None:
    """The config.json of a masked language model that can be read here, or None where there is something else, or nothing.

    ValueError for a model of `transformers` that is none of them.
    """
    try:
        config = json.loads(file_of(source, "config.json", revision).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or "model_type" not in config or "_class_name" in config:
        return None
    if config["model_type"] not in KINDS:
        raise ValueError(
            f"{source} is a model of type {config['model_type']!r}; masked language models that can be loaded by name are of type "
            f"{', '.join(KINDS)}. Put any other into viot.models.masked_lm.MaskedLM(network, tokenizer, …)"
        )
    return config


def load(source: str, config: Mapping[str, Any], **settings: Any) -> Any:
    """The Model of a published masked language model, by the `model_type` of its config.json."""
    if config["model_type"] == "mdlm":
        from .mdlm import load as read
    else:
        from .llada import load as read
    return read(source, config, **settings)


def sizes(source: str, config: Mapping[str, Any], *names: str) -> list[int]:
    """These entries of config.json, which are counts; a ValueError names what is not there."""
    for name in names:
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise ValueError(f"config.json of {source} says {name}={config.get(name)!r}, where a count is needed")
    return [config[name] for name in names]


def file_of(source: str | Path, name: str, revision: str | None = None) -> Path:
    """A file of a folder, or of a repository, downloaded if need be; OSError or ValueError where there is none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"it has no {name}")
        return folder / name
    return Path(need("huggingface_hub", "text").hf_hub_download(str(source), name, revision=revision))


def weights_of(source: str, revision: str | None = None) -> dict[str, Tensor]:
    """All tensors of a checkpoint: safetensors, or a pickle of nothing but weights, in one file or several."""
    reason: Exception = FileNotFoundError()
    for name in WEIGHTS:
        try:
            found = file_of(source, name, revision)
            if not name.endswith(".index.json"):
                return state_dict(found)
            parts = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [file_of(source, part, revision) for part in parts]
        except OSError as error:
            # Of several reasons, the one for the file that people expect.
            reason = error if name == "model.safetensors" else reason
            continue
        return {key: value for file in files for key, value in state_dict(file).items()}
    raise missing(source, f"a folder (./{Path(source).name})", reason)


def tokenizer_of(source: str, tokenizer: Any, otherwise: str | None = None, revision: str | None = None) -> Any:
    """The tokenizer of `transformers` that is given, or named, or that lies beside the weights; else the one named `otherwise`."""
    if tokenizer is not None and not isinstance(tokenizer, (str, Path)):
        return tokenizer
    if tokenizer is None:
        folder = Path(source).expanduser()
        own = otherwise is None or any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
        tokenizer, revision = (source, revision) if own else (otherwise, None)
    else:
        revision = None
    at = str(Path(tokenizer).expanduser()) if Path(tokenizer).expanduser().is_dir() else str(tokenizer)
    return pretrained(_class_of(at, revision), at, "tokenizer='./folder'", revision)


def _class_of(source: str, revision: str | None) -> str:
    """Which tokenizer of `transformers` to open. Where a repository has code of its own, AutoTokenizer would ask whether to run it."""
    held = []
    for name in ("tokenizer_config.json", "config.json"):
        try:
            held.append(json.loads(file_of(source, name, revision).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            held.append({})
    words, network = held
    named = str(words.get("tokenizer_class"))
    if "Tokenizer" in named and not named.startswith("Auto") and hasattr(need("transformers", "text"), named):
        return named
    return "PreTrainedTokenizerFast" if "auto_map" in {**words, **network} else "AutoTokenizer"


def places(text: str, tokenizer: Hub) -> tuple[int, bool]:
    """How many tokens and counted free places a prompt has, and whether it leaves open how many more there are."""
    words, counts = FREE.split(text)[::2], FREE.split(text)[1::2]
    counted = sum(int(count or 1) for count in counts if count != "*")
    return sum(len(tokenizer.encode(part)) for part in words) + counted, "*" in counts or not counts


def laid_out(heads: Iterable[list[int]], texts: Iterable[list[int]]) -> tuple[Tensor, int]:
    """Rows (n, length) in which all texts begin in the same column, and the number of that column: what a row lacks is NOTHING."""
    heads, texts = list(heads), list(texts)
    before, after = max(map(len, heads)), max(map(len, texts))
    rows = [
        [NOTHING] * (before - len(head)) + head + text + [NOTHING] * (after - len(text)) for head, text in zip(heads, texts, strict=True)
    ]
    return torch.tensor(rows), before
