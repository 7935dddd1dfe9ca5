"""Captioned digits: text-to-image as the papers do it, small enough for a laptop, with a reader that steers nobody."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...methods.smc import EVERY_FIFTH
from ..preset import Preset, embedded, tasks
from .published import published

#: Of the reader's log-probabilities; the same for all, so that all have one target for each prompt.
STRENGTH = 2.0


# The papers' text-to-image line-up with the settings that they have for pictures, selecting at the same nine of twenty steps; FK steering by
# differences, and by the largest reward so far as its text-to-image experiments run it (arXiv 2501.06848).
def _methods() -> dict[str, tuple[float, dict[str, Any]]]:
    found = {name: (STRENGTH, settings) for name, (_, settings) in published(EVERY_FIFTH).items()}
    return {**found, "vasr-max": (STRENGTH, {"eta": 1.0, "schedule": EVERY_FIFTH})}


@tasks.add(
    "captions",
    "pictures of one or two coloured digits as sixteen captions say them",
    cost="16 × 480 network rows per seed and method, of 20 ms each",
)
def _captions() -> Preset:
    return Preset(
        model="captions", reward="captions", prompts=partial(embedded, "captions.txt"),
        papers=("arXiv 2501.06848", "arXiv 2506.20701", "arXiv 2604.06779"), particles=50, steps=20, lam=STRENGTH, methods=_methods(),
        line_up=("base", "best-of-n", "importance", "auto", "fkd", "fkd(potential=max)", "vasr", "vasr-max", "fvd", "dps", "tds", "das", "svdd", "dts", "dts-star"),
        judges=("captions-judge",), trace=("captions-judge pick",), nfe=(160, 320), features="captions-judge", reference=128,
    )  # fmt: skip
