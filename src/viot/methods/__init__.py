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
    for name, or_none in _numbers(kind).items():
        value = settings.get(name, 0)
        if isinstance(value, str) or (value is None and not or_none):
            raise TypeError(f"{name} of {method} is a number{' or None' if or_none else ''}, not {value!r}")
    return kind(**settings)


def _numbers(kind: Any) -> dict[str, bool]:
    """The settings that are numbers by their annotations, where those can be read, and whether each may be None."""
    try:
        hints = typing.get_type_hints(kind)
    except NameError:
        return {}
    kinds = {name: set(typing.get_args(hint) or [hint]) for name, hint in hints.items()}
    return {name: type(None) in each for name, each in kinds.items() if not each - {bool, int, float, type(None)}}
