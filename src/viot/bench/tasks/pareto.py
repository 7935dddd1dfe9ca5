"""Two rewards that compete: every weight between them is a target, and all together are a front."""

from __future__ import annotations

from ...methods.smc import EVERY_TENTH
from ..front import Front, weights
from ..preset import Preset, tasks
from .published import published

#: Log-probabilities of two classes that handwriting confuses: a picture is a four or a nine, and a few are nearly both. The point is below what plain
#: draws have of either.
FRONT = Front(("digit:4", "digit:9"), (-15.0, -15.0))


# Weighted sums of two rewards as arXiv 2501.05803 (section 4) steers by aesthetics and by preference, here small enough to have a known target.
@tasks.add(
    "pareto",
    "handwritten digits between a four and a nine, five weights of two rewards",
    cost="5 × 4 × 1000 network rows per seed and method",
)
def _pareto() -> Preset:
    rewards = weights(FRONT.rewards, 4)
    return Preset(
        model="digits", reward=rewards[2], rewards=rewards, front=FRONT, prompts=None, papers=("arXiv 2501.05803",), particles=20, steps=50,
        lam=1.0, methods=published(EVERY_TENTH), nfe=(1000,), groups=4, features="digits-judge", reference=2048,
    )  # fmt: skip
