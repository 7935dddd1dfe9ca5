"""Tasks by name: model, reward, prompts, and for each method the schedule and strength that it was published with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any

from .. import prompts
from ..methods.smc import EVERY_FIFTH, EVERY_TENTH
from ..registry import Registry

tasks = Registry("task")

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


@dataclass(frozen=True)
class Preset:
    """A task as it was published; whatever the command line says goes over it.

    prompts     gives the list, one group each: from the package, or downloaded when asked; None where the model follows none
    papers      who reported it, and where the prompts are from
    particles   K: with `steps` the budget of K·T network rows per prompt
    methods     method -> (λ, settings). A method that is not named has its own defaults, at `lam`

    For `viot bench`:

    line_up     methods as they are written, if not all of `methods`        nfe         budgets, network rows per group
    judges      rewards that read the answers and steer nobody              groups      per seed, where there are no prompts
    characters  texts are compared by characters, not by words              rewards     several, a row for each, if not `reward` alone
    features    in which points and pictures are compared with a reference that rests on so many base draws (`reference`); `bandwidth` and
                `radius` see `viot.bench.reference.References`
    """

    model: str
    reward: str
    prompts: Callable[[], list[str]] | None
    papers: tuple[str, ...]
    particles: int
    steps: int
    lam: float
    methods: dict[str, tuple[float, dict[str, Any]]]
    line_up: tuple[str, ...] = ()
    judges: tuple[str, ...] = ()
    nfe: tuple[int, ...] = ()
    groups: int | None = None
    characters: bool = False
    rewards: tuple[str, ...] = ()
    features: str | None = None
    reference: int | None = None
    bandwidth: float | None = None
    radius: float | None = None

    def published(self, method: str) -> tuple[float, dict[str, Any]]:
        """λ and settings for a method."""
        lam, settings = self.methods.get(method, (self.lam, {}))
        return lam, dict(settings)


def download(name: str, address: str, expected: int) -> list[str]:
    """The prompts of a public file, whose number must be as published."""
    import urllib.request

    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{hub}/{address}"
    advice = f"Give a copy of your own instead: --task {name} --prompts FILE"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OSError(f"the prompts of {name} could not be downloaded from {url} ({getattr(error, 'reason', error)}). {advice}") from error
    found = prompts.parse(text, f"{name}.csv")
    if len(found) != expected:
        raise ValueError(f"{url} holds {len(found)} prompts, not the {expected} of {name}. {advice}")
    return found


def embedded(name: str) -> list[str]:
    """The prompts of a text file in this package."""
    return prompts.parse(files("viot.bench").joinpath(name).read_text(encoding="utf-8"), name)


# The smallest budget of arXiv 2506.20701's tables is 1 000 network calls per prompt: 20 particles of 50 steps.
_STABLE_DIFFUSION = partial(
    Preset, model="stable-diffusion-v1-5/stable-diffusion-v1-5", particles=20, steps=50, lam=STRONG, methods=TEXT_TO_IMAGE
)


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
        prompts=partial(embedded, "animals.txt"),
        papers=("arXiv 2506.20701", "arXiv 2604.06779", "arXiv 2305.13301"),
    )


#: Settings for masked text, again spelled out. FK steering as its text experiments run it (arXiv 2501.06848 and its code: potential by
#: differences, four clean guesses drawn per particle, multinomial selection at every fiftieth of the steps); the search tree's alpha and
#: backup are those of arXiv 2506.20701 for text; beams of four by four are the library's. λ is the same for all, so that all have one target.
def _text(lam: float) -> dict[str, tuple[float, dict[str, Any]]]:
    guesses = {"name": "x0_samples", "n": 4}
    fkd = {"potential": "diff", "value": guesses, "schedule": tuple(j / 50 for j in range(1, 50)), "resampling": "multinomial"}
    found: dict[str, dict[str, Any]] = {
        "base": {},
        "best-of-n": {"n": 4},
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
    "base", "best-of-n", "fkd", "vasr", "fvd", "svdd", "dts-star", "treasure", "urge(guide={'name': 'feature', 'theta': [[1.0]]})",
    "tri-tsmc(twist=feature)", "tri-tsmc(twist=tokens)",
)  # fmt: skip

_PAPERS = ("arXiv 2406.07524", "arXiv 2501.06848", "arXiv 2506.20701", "arXiv 2509.23146")


@tasks.add("text", "first names with many an a: masked diffusion, letter by letter", cost="4 × 640 network rows per seed and method")
def _names() -> Preset:
    return Preset(
        model="names", reward="count:a", prompts=None, papers=_PAPERS, particles=64, steps=16, lam=1.0, methods=_text(1.0),
        line_up=LINE_UP, judges=("ngram:names",), nfe=(320, 640), groups=4, characters=True,
    )  # fmt: skip


@tasks.add(
    "text-reviews",
    "sentences of film reviews that praise: masked diffusion of word pieces",
    cost="4 × 1280 network rows per seed and method",
)
def _reviews() -> Preset:
    return Preset(
        model="reviews", reward="reviews:positive", prompts=None, papers=_PAPERS, particles=64, steps=32, lam=2.0, methods=_text(2.0),
        line_up=LINE_UP, judges=("reviews-judge:positive", "ngram:reviews"), nfe=(640, 1280), groups=4,
    )  # fmt: skip


#: Points and digits as arXiv 2506.20701 runs them (appendices B, F and G), spelled out: η = 1, λ = 1 for all, so that all have one target;
#: trees branch, and FK steering, TDS and DAS select, where `schedule` says, at ESS < K/2; FK steering by differences, guidance without weights
#: for DPS, the gradient's shift clipped (the threshold was not printed: here the length of the step's noise). c_uct is the library's. VASR at every
#: fifth of 50 steps as arXiv 2604.06779 says, FVD at the same. SVDD keeps four candidates and draws among them at α = 1/λ, URGE (arXiv 2605.17850)
#: follows the gradient and is weighted at every step: the library's readings, since neither paper has these tasks.
def _published(schedule: tuple[float, ...]) -> dict[str, tuple[float, dict[str, Any]]]:
    guided = {"eta": 1.0, "guidance": 1.0, "mean": "score", "clip": 1.0}
    settings: dict[str, dict[str, Any]] = {
        "base": {"eta": 1.0},
        "best-of-n": {"eta": 1.0, "n": None},
        "importance": {"eta": 1.0},
        "fkd": {"eta": 1.0, "potential": "diff", "schedule": schedule, "resampling": "multinomial", "ess_threshold": 0.5},
        "vasr": {"eta": 1.0, "schedule": EVERY_FIFTH, "resampling": "systematic", "order": "score"},
        "fvd": {"eta_base": 0.0, "eta_rebirth": 1.0, "schedule": EVERY_FIFTH, "cap": 0.5},
        "dps": {"eta": 1.0, "zeta": None, "clip": 1.0},
        "tds": {**guided, "schedule": schedule, "ess_threshold": 0.5},
        "das": {**guided, "schedule": schedule, "resampling": "ssp", "ess_threshold": 0.5},
        "urge": {**guided, "schedule": "every", "path": "scaled", "ess_threshold": 0.5},
        "svdd": {"eta": 1.0, "m": 4, "choice": "categorical"},
        "dts": {"eta": 1.0, "schedule": schedule, "c": 2.0, "alpha": 0.8},
        "dts-star": {"eta": 1.0, "schedule": schedule, "c": 2.0, "alpha": 0.8, "c_uct": 1.0},
    }
    return {name: (1.0, own) for name, own in settings.items()}


#: Trees of the plane branch at 80, 60, 40 and 20 of 100 steps to go.
_PLANE = partial(
    Preset, prompts=None, papers=("arXiv 2506.20701",), particles=40, steps=100, lam=1.0, methods=_published((0.2, 0.4, 0.6, 0.8)),
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


# The paper's pictures are of 32 × 32 by a larger network and its reference the data's; here the embedded model, and its own draws weighed.
_DIGITS = partial(
    Preset, model="digits", prompts=None, papers=("arXiv 2506.20701", "arXiv 2604.06779"), particles=20, steps=50, lam=1.0,
    methods=_published(EVERY_TENTH), nfe=(1000, 2500), groups=4, features="digits-judge", reference=2048,
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
