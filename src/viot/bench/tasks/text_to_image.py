"""Stable Diffusion by prompts of the papers."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...methods.smc import EVERY_FIFTH, EVERY_TENTH
from ..preset import Preset, download, embedded, tasks

#: Text-to-image strength of FK steering's "max" potential and its re-implementations (arXiv 2506.20701, appendix B).
STRONG = 10.0

#: λ and the settings of each method for text-to-image at η = 1, spelled out: a task must not drift when a default does.
#: FK steering and the gradient methods as arXiv 2506.20701 (appendices B and G) runs them, the trees as it runs its own (whose λ and exploration
#: constant for text-to-image it does not give), SVDD with the α = 1/λ and M of arXiv 2408.08252 and the argmax of its code. The start and
#: end of VASR's schedule, its λ, and the constants of FVD were not published: those here are the library's readings, every fifth of 50 steps
#: from the 5th to the 45th.
TEXT_TO_IMAGE: dict[str, tuple[float, dict[str, Any]]] = {
    "base": (STRONG, {"eta": 1.0}),
    "best-of-n": (STRONG, {"eta": 1.0, "n": None}),
    "importance": (STRONG, {"eta": 1.0}),
    "fkd": (STRONG, {"eta": 1.0, "potential": "max", "schedule": EVERY_TENTH, "resampling": "multinomial", "ess_threshold": 0.5}),
    "vasr": (1.0, {"eta": 1.0, "schedule": EVERY_FIFTH, "resampling": "systematic", "order": "score"}),
    "vasr-max": (1.0, {"eta": 1.0, "schedule": EVERY_FIFTH}),
    "dps": (STRONG, {"eta": 1.0, "zeta": None}),
    "tds": (STRONG, {"eta": 1.0, "mean": "score", "schedule": EVERY_TENTH, "ess_threshold": 0.5}),
    "das": (STRONG, {"eta": 1.0, "schedule": EVERY_TENTH, "resampling": "ssp", "ess_threshold": 0.5}),
    "svdd": (100.0, {"eta": 1.0, "m": 20, "choice": "argmax"}),
    "dts": (1.0, {"eta": 1.0, "schedule": EVERY_TENTH, "c": 2.0, "alpha": 0.8}),
    "dts-star": (1.0, {"eta": 1.0, "schedule": EVERY_TENTH, "c": 2.0, "alpha": 0.8, "c_uct": 1.0}),
    "fvd": (STRONG, {"eta_base": 0.0, "eta_rebirth": 1.0, "schedule": EVERY_FIFTH, "cap": 0.5}),
}


# The smallest budget of arXiv 2506.20701's tables is 1 000 network calls per prompt: 20 particles of 50 steps. What the papers compare is the best
# of each prompt, by the reward and by others that did not steer. Strengths differ by method, so there is no common target: answers are held against
# the plain model's own pictures.
_STABLE_DIFFUSION = partial(
    Preset, model="stable-diffusion-v1-5/stable-diffusion-v1-5", particles=20, steps=50, lam=STRONG, methods=TEXT_TO_IMAGE,
    nfe=(1000,), features="clip", reference=16, untilted=True, portable=True,
)  # fmt: skip


@tasks.add(
    "drawbench",
    "the 200 prompts of DrawBench, Stable Diffusion 1.5 toward ImageReward",
    cost="200 × 1000 network rows",
    licence="prompts downloaded, licence not stated",
)
def _drawbench() -> Preset:
    address = "datasets/sayakpaul/drawbench/resolve/main/DrawBench%20Prompts%20-%20Sheet1.csv"
    return _STABLE_DIFFUSION(
        reward="imagereward",
        judges=("aesthetic", "clip", "hps"),
        trace=("aesthetic pick", "clip pick", "hps pick"),
        prompts=partial(download, "drawbench", address, 200),
        papers=("arXiv 2506.20701", "arXiv 2604.06779", "arXiv 2205.11487"),
    )


@tasks.add(
    "animals",
    "45 animals by name, Stable Diffusion 1.5 toward the LAION aesthetic score",
    cost="45 × 1000 network rows",
    licence="prompts MIT (kvablack/ddpo-pytorch)",
)
def _animals() -> Preset:
    return _STABLE_DIFFUSION(
        reward="aesthetic",
        judges=("imagereward", "clip", "hps"),
        trace=("imagereward pick", "clip pick", "hps pick"),
        prompts=partial(embedded, "animals.txt"),
        papers=("arXiv 2506.20701", "arXiv 2604.06779", "arXiv 2305.13301"),
    )
