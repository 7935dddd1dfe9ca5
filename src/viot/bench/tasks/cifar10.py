"""Small photographs."""

from __future__ import annotations

from ...methods.smc import EVERY_TENTH
from ...rewards.cifar import CLASSES
from ..preset import Preset, tasks
from .published import published


# The papers steer google/ddpm-cifar10-32, whose pictures are 32 × 32, and compare with real ones; here the embedded model at 16 × 16, and its own
# draws weighed. With `--model google/ddpm-cifar10-32` the same readers average its pictures down.
@tasks.add(
    "cifar10",
    "photographs of 16 × 16 toward each of CIFAR-10's classes, ten rewards; also --model google/ddpm-cifar10-32",
    cost="10 × 4 × 3500 network rows per seed and method",
)
def _cifar10() -> Preset:
    rewards = tuple(f"cifar:{name}" for name in CLASSES)
    return Preset(
        model="cifar16", reward="cifar:airplane", rewards=rewards, prompts=None, papers=("arXiv 2506.20701", "arXiv 2604.06779"),
        particles=20, steps=50, lam=1.0, methods=published(EVERY_TENTH), nfe=(1000, 2500), groups=4, features="cifar-judge", reference=2048,
        portable=True,
    )  # fmt: skip
