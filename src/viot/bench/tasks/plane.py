"""Points of the plane, where every law is known."""

from __future__ import annotations

from functools import partial

from ..preset import Preset, tasks
from .published import published

#: Trees of the plane branch at 80, 60, 40 and 20 of 100 steps to go.
_PLANE = partial(
    Preset, prompts=None, papers=("arXiv 2506.20701",), particles=40, steps=100, lam=1.0, methods=published((0.2, 0.4, 0.6, 0.8)),
    nfe=(1000, 4000, 16000), groups=8, features="points", bandwidth=1.0,
)  # fmt: skip


# The paper's formula of the reward was lost in print; its text names the weights exp(1.5 i). The model here is exact, theirs was a small network. The
# kernel of the MMD was not printed: its width of 1 is between that of a mode and the gap between two.
@tasks.add(
    "mixture", "eight modes on a circle toward the last ones, in the plane", cost="8 × 21000 network rows per seed and method, of 5 µs each"
)
def _mixture() -> Preset:
    return _PLANE(model="mixture", reward="modes", reference=16384, radius=0.9)


@tasks.add(
    "checkerboard", "a checkerboard toward its middle, in the plane", cost="8 × 21000 network rows per seed and method, of 40 µs each"
)
def _checkerboard() -> Preset:
    return _PLANE(model="checkerboard", reward="quadratic", reference=4096)
