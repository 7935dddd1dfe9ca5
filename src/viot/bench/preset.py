"""A task as it was published: model, reward, prompts, and for each method the schedule and strength that it was reported with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from .. import prompts
from ..registry import Registry
from .front import Front

tasks = Registry("task")


@dataclass(frozen=True)
class Figure:
    """A figure of a task's own.

    y        a number of the rows' metrics; over steps one that is recorded at selections, or `family/`, a curve for each of its members
    x        "step", "particles", "lam", "noise" (σ of a reward `noisy:σ:…`), or a setting of the methods: one that does not have it is a level line
    log      "x", "y" or "xy": which axes are drawn in logarithms
    """

    title: str
    y: str
    x: str = "step"
    note: str = ""
    x_label: str = ""
    y_label: str = ""
    log: str = ""


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
    trace       numbers of the selections, names of `viot.bench.measure.TRACED`, and "NAME pick", what the judge NAME says of the best
    probes      what else is asked of the selections, names of `viot.bench.probe.probes`
    figures     what is drawn beside the figures of every bench
    untilted    answers are compared with the plain model alone: draws that are too few for a tilt, or targets that differ by method
    front       two rewards of whose weighted sums `rewards` are, see `viot.bench.front.Front`
    portable    judges and features read samples of any other --model that the rewards read
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
    portable: bool = False
    untilted: bool = False
    front: Front | None = None
    trace: tuple[str, ...] | None = None
    probes: tuple[str, ...] | None = None
    figures: tuple[Figure, ...] = ()

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
