"""What the record of a run says of the objects in it: enough to run it again, or to see that another run is another one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
import sys
from typing import Any

import torch

from . import __version__
from .model import Model
from .reward import name_of
from .value import NAMED


def describe(given: Any, model: Model) -> Any:
    """What the record says of the model: its name, or its type and shape, and whatever it tells of itself."""
    told = getattr(model, "config", None)
    about: dict[str, Any] = {"name": given if isinstance(given, str) else type(model).__name__, "event_shape": list(model.event_shape)}
    if prompts := getattr(model, "prompts", None):
        about["prompts"] = plain(list(prompts))
    return about | ({"config": plain(told)} if isinstance(told, dict) else {})


def plain(value: Any) -> Any:
    """Settings as JSON can hold them: objects become their name with their own settings."""
    if callable(own := getattr(value, "record", None)) and not isinstance(value, type):
        return own()
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)} {digest(value)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = next((known for known, kind in NAMED.items() if kind is type(value)), type(value).__name__)
        return {"name": name, **{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) or hasattr(value, "fingerprint"):
        return f"{name_of(value)} {fingerprint(value) or ''}".strip()
    return repr(value)


def fingerprint(thing: Any) -> str | None:
    """What tells two things of the same name apart: of functions a hash of code, constants and captured values, of an object what its own
    `fingerprint()` says. None for others.
    """
    if callable(own := getattr(thing, "fingerprint", None)):
        return str(own())
    if isinstance(thing, torch.nn.Module):
        # Some values of every parameter: a large network has no time for all.
        some = [(k, tuple(v.shape), v.flatten()[:: max(1, v.numel() // 8)][:8].tolist()) for k, v in thing.state_dict().items()]
        return hashlib.blake2b(repr(some).encode(), digest_size=6).hexdigest()
    if isinstance(thing, functools.partial):
        held = [thing.func, *thing.args, *thing.keywords.values()]
        return hashlib.blake2b(repr([_told(v) for v in held]).encode(), digest_size=6).hexdigest()
    code = getattr(thing, "__code__", None)
    if code is None:
        return None
    captured = [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    held = (*code.co_consts, *captured, *(getattr(thing, "__defaults__", None) or ()))
    return hashlib.blake2b(repr((code.co_code, code.co_names, [_told(v) for v in held])).encode(), digest_size=6).hexdigest()


def _told(value: Any) -> Any:
    """What a fingerprint holds of a captured value."""
    if isinstance(value, (bool, int, float, str)):
        return value
    return digest(value) if isinstance(value, torch.Tensor) else fingerprint(value)


def digest(values: torch.Tensor) -> str:
    """A short name of a tensor's values."""
    return hashlib.blake2b(values.detach().cpu().double().numpy().tobytes(), digest_size=6).hexdigest()


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a run may have used."""
    loaded = ("torch", "diffusers", "transformers", "PIL")
    found = {"viot": __version__, "python": platform.python_version()}
    return found | {name: str(sys.modules[name].__version__) for name in loaded if hasattr(sys.modules.get(name), "__version__")}
