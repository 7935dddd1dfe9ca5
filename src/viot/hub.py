"""Published weights: found on the hub or on disk, opened without running anybody's code, and answered for when they are missing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .optional import need

Module = TypeVar("Module", bound=nn.Module)

#: What may be done with the weights, and whether somebody must be asked first. Shown where they cannot be had.
TERMS = {
    "openai/clip-vit-large-patch14": "licence MIT as its code, not gated",
    "openai/clip-vit-large-patch14-336": "licence MIT as its code, not gated",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "licence MIT, not gated",
    "yuvalkirstain/PickScore_v1": "licence MIT as its code, not gated",
    "xswu/HPSv2": "licence Apache-2.0, not gated",
    "THUDM/ImageReward": "licence Apache-2.0, not gated",
    "google-bert/bert-base-uncased": "licence Apache-2.0, not gated",
    "kuleshov-group/mdlm-owt": "licence Apache-2.0, not gated",
    "GSAI-ML/LLaDA-8B-Base": "licence MIT, not gated",
    "GSAI-ML/LLaDA-8B-Instruct": "licence MIT, not gated",
    "gpt2": "licence MIT, not gated",
}


def pretrained(kind: str, source: str, instead: str, revision: str | None = None) -> Any:
    """`transformers.<kind>.from_pretrained(source)`, every weight of it found, or an OSError of one sentence.

    source    a repository of the hub or a folder
    instead   how to name a local copy, for that sentence
    revision  a branch, tag or commit of the repository
    """
    loader = getattr(need("transformers", "rewards"), kind)
    network = hasattr(loader, "forward") or kind.startswith("AutoModel")
    at = {} if revision is None else {"revision": revision}
    try:
        with quietly():
            # Asked for nobody's code; left open, Auto classes would ask on the terminal.
            asked = {"trust_remote_code": False} if kind.startswith(("AutoModel", "AutoTokenizer")) else {}
            loaded = loader.from_pretrained(source, **at, **asked, **({"output_loading_info": True} if network else {}))
    except (OSError, ValueError) as error:
        raise missing(source, instead, error) from error
    except RuntimeError as error:
        raise ValueError(f"{source} does not hold the weights of this {kind}: some have another shape") from error
    if not network:
        return loaded
    loaded, info = loaded
    _complete(source, kind, info["missing_keys"], ())
    return loaded


def built(kind: str, config: Any, state: dict[str, Tensor], source: str, **settings: Any) -> Any:
    """`transformers.<kind>` of this configuration with exactly these weights; a ValueError if one is missing or left over."""
    loader = getattr(need("transformers", "rewards"), kind)
    # from_pretrained makes no random weights first, which for a billion parameters takes longer than reading them.
    try:
        with quietly():
            network, info = loader.from_pretrained(None, config=config, state_dict=state, output_loading_info=True, **settings)
    except RuntimeError as error:
        raise ValueError(f"{source} does not hold the weights of this {kind}: some have another shape") from error
    _complete(source, kind, info["missing_keys"], info["unexpected_keys"])
    return network


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the bars and remarks of diffusers and transformers, which list what was meant to be left out too: what matters is raised here."""
    logs = [
        need(f"{name}.utils.logging", "rewards") for name in ("diffusers", "transformers") if name == "transformers" or name in sys.modules
    ]
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    try:
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        yield
    finally:
        for log, (verbosity, bars) in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


def _complete(source: str, kind: str, absent: Any, extra: Any) -> None:
    for what, keys in (("lacks", absent), ("also holds", extra)):
        if keys := sorted(keys):
            raise ValueError(f"{source} does not hold the weights of this {kind}: it {what} {keys[0]!r}" + (", …" if len(keys) > 1 else ""))


def published(source: str, filename: str, instead: str) -> Path:
    """A published file: `source` itself if it is a file, else `filename` of that repository, downloaded if need be."""
    if Path(source).is_file():
        return Path(source)
    hub = need("huggingface_hub", "rewards")
    try:
        return Path(hub.hf_hub_download(source, filename))
    except (OSError, ValueError) as error:
        raise missing(source, instead, error, filename) from error


def missing(source: str, instead: str, error: Exception, filename: str = "") -> OSError:
    """The error for weights that are not here: whose they are, on what terms, and what to try."""
    # The first sentence of what the libraries say, which is often a page.
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).split(". ")[0].rstrip(".")
    if Path(source).exists() or source.startswith((".", "/", "~")) or Path(source).suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return OSError(f"{source} could not be loaded ({reason}); write {instead} with a folder or file that holds the published weights")
    terms = TERMS.get(source, f"terms at https://huggingface.co/{source}")
    if "gated" in f"{type(error).__name__} {error}".lower():
        terms += "; gated: accept its conditions there, then run `hf auth login`"
    what = f"{source} {filename}".strip()
    return OSError(
        f"the weights of {source} ({terms}) are not on this machine and could not be downloaded ({reason}); where there is a network run "
        f"`hf download {what}`, or set HF_HOME to the folder that holds them, or write {instead} with a local copy"
    )


def cache_folder() -> Path:
    """Where converted weights are kept: VIOT_CACHE, else `viot` in HF_HOME, in XDG_CACHE_HOME, or in ~/.cache."""
    if own := os.environ.get("VIOT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "viot"


def state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a published weight file, on the CPU.

    A pickle is opened once, by torch's reader for weights alone (a file with anything else in it is an error), and kept as safetensors in the
    cache folder; the copy belongs to this very file, by name, size and time. Of a training checkpoint the entry `state_dict` is taken.
    """
    if file.suffix == ".safetensors":
        return load_file(file)
    at = file.resolve()
    about = at.stat()
    mark = hashlib.blake2b(f"{at} {about.st_size} {about.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    copy = cache_folder() / f"{file.stem}-{mark}.safetensors"
    if copy.is_file():
        return load_file(copy)
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} is not a file of weights alone, and is not opened in any other way: {str(error).splitlines()[0]}"
        ) from error
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    if not isinstance(held, Mapping) or not all(isinstance(v, Tensor) for v in held.values()):
        raise ValueError(f"{file} holds no state dict of tensors")
    state = {str(key): value.detach() for key, value in held.items()}
    _keep(state, copy)
    return state


def embedded(network: Module, file: Path) -> Module:
    """A network of ours with the weights that come with the package: kept in half precision, computed in float32, frozen."""
    network.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in load_file(file).items()})
    return network.eval().requires_grad_(False)


def moved_to(samples: Tensor, network: Module) -> Module:
    """The network, on the device of the samples that it is to read."""
    return network if next(network.parameters()).device == samples.device else network.to(samples.device)


def _keep(state: dict[str, Tensor], copy: Path) -> None:
    """Write the safetensors copy under another name first, so that nobody ever reads half of it."""
    fresh = copy.with_suffix(f".{os.getpid()}.tmp")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Tensors that share memory are written apart; safetensors refuses them otherwise.
        save_file({key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}, fresh)
        fresh.replace(copy)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        warnings.warn(
            f"could not keep a safetensors copy in {copy.parent} ({error}); the published file will be opened again the next time. "
            f"VIOT_CACHE names another folder.",
            UserWarning,
            stacklevel=4,
        )


def dtype_of(given: torch.dtype | str) -> torch.dtype:
    """A floating-point dtype, or its name ("bfloat16")."""
    found: Any = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating-point one, such as torch.bfloat16 or 'bfloat16', not {given!r}")
    return found
