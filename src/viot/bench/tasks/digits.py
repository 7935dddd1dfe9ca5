"""Handwritten digits."""

from __future__ import annotations

from functools import partial

from ...methods.smc import EVERY_TENTH
from ..preset import Preset, tasks
from .published import published

# The paper's pictures are of 32 × 32 by a larger network and its reference the data's; here the embedded model, and its own draws weighed.
_DIGITS = partial(
    Preset, model="digits", prompts=None, papers=("arXiv 2506.20701", "arXiv 2604.06779"), particles=20, steps=50, lam=1.0,
    methods=published(EVERY_TENTH), nfe=(1000, 2500), groups=4, features="digits-judge", reference=2048,
)  # fmt: skip


@tasks.add("mnist", "handwritten digits toward each single digit, ten rewards", cost="10 × 4 × 3500 network rows per seed and method")
def _mnist() -> Preset:
    return _DIGITS(reward="digit:0", rewards=tuple(f"digit:{c}" for c in range(10)))


@tasks.add(
    "mnist-even-odd",
    "handwritten digits toward even and toward odd ones, two rewards",
    cost="2 × 4 × 3500 network rows per seed and method",
)
def _even_odd() -> Preset:
    return _DIGITS(reward="digits:even", rewards=("digits:even", "digits:odd"))
