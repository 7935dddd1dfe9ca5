"""The one place that writes to a terminal."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from .problem import SteeringWarning

#: Warnings that have been shown as notes during this command.
told: set[str] = set()


def say(text: str = "") -> None:
    """A line, or several, on standard output."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """A line on standard error."""
    # tqdm steps aside for the line if a bar is being drawn.
    tqdm.write(text, file=sys.stderr)


def colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


@contextmanager
def notes() -> Iterator[None]:
    """Show warnings meant for the user as a line `note: …`, each once."""
    told.clear()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if category not in (SteeringWarning, UserWarning):
                usual(message, category, *rest)
            elif str(message) not in told:
                told.add(str(message))
                complain(f"note: {message}")

        warnings.showwarning = show
        warnings.filterwarnings("always", category=SteeringWarning)
        warnings.filterwarnings("always", category=UserWarning, module="viot")
        yield
