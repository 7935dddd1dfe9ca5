"""Masked diffusion of names and of sentences."""

from __future__ import annotations

from typing import Any

from ...methods.smc import EVERY_FIFTH, EVERY_TENTH
from ..preset import Preset, tasks


#: Settings for masked text, again spelled out. FK steering as its text experiments run it (arXiv 2501.06848 and its code: potential by
#: differences, four clean guesses drawn per particle, multinomial selection at every fiftieth of the steps); the search tree's alpha and
#: backup are those of arXiv 2506.20701 for text; beams of four by four are the library's. λ is the same for all, so that all have one target.
def _text(lam: float) -> dict[str, tuple[float, dict[str, Any]]]:
    guesses = {"name": "x0_samples", "n": 4}
    fkd = {"potential": "diff", "value": guesses, "schedule": tuple(j / 50 for j in range(1, 50)), "resampling": "multinomial"}
    found: dict[str, dict[str, Any]] = {
        "base": {},
        "best-of-n": {"n": 4},
        "auto": {"schedule": EVERY_FIFTH, "resampling": "ssp", "ess_threshold": 0.5, "power": None, "prior": 10.0},
        "fkd": {**fkd, "ess_threshold": None},
        "vasr": {"schedule": EVERY_FIFTH, "resampling": "systematic", "order": "score"},
        "fvd": {"schedule": EVERY_FIFTH, "cap": 0.5},
        "svdd": {"m": 4, "choice": "categorical"},
        "dts-star": {"schedule": EVERY_TENTH, "c": 2.0, "alpha": 0.7, "c_uct": 1.0, "backup": "max"},
        "treasure": {"width": 4, "branch": 4},
        "urge": {"schedule": EVERY_FIFTH, "path": "scaled"},
        "tri-tsmc": {"schedule": EVERY_TENTH, "rounds": 3},
    }
    return {name: (lam, settings) for name, settings in found.items()}


#: URGE weighs any drift exactly, and tokens have no gradient to be one: its drift here is the feature of the twists below at η = 1, what the
#: reward of the likeliest fill gains by a token. Without a guide it is FK steering by differences.
LINE_UP = (
    "base", "best-of-n", "auto", "fkd", "vasr", "fvd", "svdd", "dts-star", "treasure", "urge(guide={'name': 'feature', 'theta': [[1.0]]})",
    "tri-tsmc(twist=feature)", "tri-tsmc(twist=tokens)",
)  # fmt: skip

_PAPERS = ("arXiv 2406.07524", "arXiv 2501.06848", "arXiv 2506.20701", "arXiv 2509.23146")


@tasks.add("text", "first names with many an a: masked diffusion, letter by letter", cost="4 × 960 network rows per seed and method")
def _names() -> Preset:
    return Preset(
        model="names", reward="count:a", prompts=None, papers=_PAPERS, particles=64, steps=16, lam=1.0, methods=_text(1.0),
        line_up=LINE_UP, judges=("ngram:names",), nfe=(320, 640), groups=4, characters=True,
    )  # fmt: skip


@tasks.add(
    "text-reviews",
    "sentences of film reviews that praise: masked diffusion of word pieces",
    cost="4 × 1920 network rows per seed and method",
)
def _reviews() -> Preset:
    return Preset(
        model="reviews", reward="reviews:positive", prompts=None, papers=_PAPERS, particles=64, steps=32, lam=2.0, methods=_text(2.0),
        line_up=LINE_UP, judges=("reviews-judge:positive", "ngram:reviews"), nfe=(640, 1280), groups=4,
    )  # fmt: skip
