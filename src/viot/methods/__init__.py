"""One file per family, named after its paper. `methods` is the table of names; `make` turns a name or an object into a method."""

from __future__ import annotations

import inspect
import typing
from typing import Any

from ..registry import unknown
from .auto import Auto
from .das import DAS
from .dps import DPS
from .dts import DTS, DTSStar
from .fkc import FKC
from .fkd import FKD
from .fvd import FVD
from .independent import Base, BestOfN, Importance
from .method import Method, methods
from .smc import SMC, ResamplingSMC
from .svdd import SVDD, SVDDR
from .tds import TDS
from .treasure import TReASURe
from .tri_tsmc import TriTSMC
from .urge import URGE
from .vasr import VASR, VASRMax

__all__ = [
    "DAS", "DPS", "DTS", "FKC", "FKD", "FVD", "SMC", "SVDD", "SVDDR", "TDS", "URGE", "VASR", "Auto", "Base", "BestOfN", "DTSStar", "Importance", "Method",
    "ResamplingSMC", "TReASURe", "TriTSMC", "VASRMax", "make", "methods",
]  # fmt: skip


def make(method: str | Any, **settings: Any) -> Any:
    """A method from its name and settings, or the object itself. Errors name the settings that exist."""
    if not isinstance(method, str):
        if settings:
            raise TypeError("settings go with a method's name; give a method object its own")
        if not callable(getattr(method, "run", None)):
            raise TypeError(f"a method is a name or an object with run(problem, state), not {method!r}")
        return method
    kind = methods[method].make
    known = list(inspect.signature(kind).parameters)
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {method}", name, known)
    for name in _numbers(kind):
        if isinstance(settings.get(name), str):
            raise TypeError(f"{name} of {method} is a number, not {settings[name]!r}")
    return kind(**settings)


def _numbers(kind: Any) -> set[str]:
    """The settings that are numbers by their annotations, where those can be read."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:
        return set()
    return {name for name, hint in hints.items() if not set(typing.get_args(hint) or [hint]) - {bool, int, float, type(None)}}
