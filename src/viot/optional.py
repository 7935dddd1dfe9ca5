"""Packages that only some people need: imported where they are used, and asked for by name where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

#: What pip calls a package that Python calls something else.
PIP_NAMES = {"PIL": "Pillow"}


def need(package: str, extra: str) -> Any:
    """Import an optional package, or say what to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        top = package.partition(".")[0]
        raise ImportError(f"this needs {PIP_NAMES.get(top, top)}: pip install 'viot[{extra}]'") from error
