"""Rewards that err: the same reward with noise of several strengths, answers read by the reward itself."""

from __future__ import annotations

from functools import partial

from ..preset import Figure, Preset, tasks
from .published import published

_SIGMAS = (0, 0.5, 1, 2, 4, 8)
_LINE_UP = ("base", "best-of-n", "importance", "fkd", "vasr", "vasr-max")


def _noisy(reward: str, **task: object) -> Preset:
    of = partial(Figure, x="noise", x_label="σ of the noise")
    return Preset(
        reward=f"noisy:0:{reward}", rewards=tuple(f"noisy:{sigma:g}:{reward}" for sigma in _SIGMAS), judges=(reward,), prompts=None,
        papers=("arXiv 2604.06779", "arXiv 2506.20701"), lam=1.0, methods=published((0.2, 0.4, 0.6, 0.8)), line_up=_LINE_UP,
        trace=(f"{reward} pick",),
        figures=(
            of("The true reward of the best", f"{reward} pick", note="What the reward without noise says of the particle that the noisy one prefers.", y_label="reward"),
            of("The true reward of all", reward, note="Weighted mean of the reward without noise.", y_label="reward"),
            of("What the noisy reward says of its best", "pick", note="Far above the truth: the noise was chosen too.", y_label="reward"),
            of("Effective sample size", "ess", note="Of the final weights.", y_label="ESS"),
        ),
        **task,  # type: ignore[arg-type]
    )  # fmt: skip


@tasks.add("noise", "a reward that errs: who can be trusted with it, on the mixture", cost="6 × 8 × 4000 network rows per seed and method")
def _mixture() -> Preset:
    return _noisy("modes", model="mixture", particles=40, steps=100, nfe=(4000,), groups=8)


@tasks.add("noise-digits", "the same on handwritten digits", cost="6 × 4 × 1000 network rows per seed and method")
def _digits() -> Preset:
    return _noisy("digit:7", model="digits", particles=20, steps=50, nfe=(1000,), groups=4)
