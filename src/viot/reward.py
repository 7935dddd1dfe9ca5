"""What a reward is: a score for each row, by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """A reward's answer when it has parts to tell: `total` (n,) and named parts (n,)."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """Any callable `samples -> (n,)`. Each row is scored on its own, so that slices may have any size.

    What it asks for by name it receives, one entry per row: `prompts` (the model's prompt of the row's group), `group` (the group's
    index) and `noise` (a standard normal number, for rewards that are random: drawn so that a run can be repeated). −inf is a hard
    constraint. Optional attributes: `differentiable`, `name`, and `check(prompts)`, which raises for prompts that it can't score, before any
    network call.
    """

    def __call__(self, samples: Any) -> Tensor | Scores: ...


#: The parameters that a reward may ask for beside the samples.
OFFERED = ("prompts", "group", "noise")


def asks_for(reward: Callable) -> tuple[str, ...]:
    """Which of `OFFERED` the reward's signature names (or its attribute `asks`). An error for any other parameter without a default."""
    declared = getattr(reward, "asks", None)
    if isinstance(declared, tuple):
        return declared
    try:
        # A torch module's __call__ takes anything; what it means to take stands in its forward.
        target: Callable = getattr(reward, "forward") if isinstance(reward, torch.nn.Module) else reward  # noqa: B009
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return ()
    for p in parameters[1:]:
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in OFFERED:
            raise TypeError(
                f"the reward {name_of(reward)} needs a parameter {p.name!r} that nothing supplies. "
                f"It is called with the samples, and with any of {', '.join(OFFERED)} that it names."
            )
    return tuple(p.name for p in parameters[1:] if p.name in OFFERED)


def takes(function: Callable, parameter: str) -> bool:
    """Does the function's signature name this parameter?"""
    return parameter in inspect.signature(function).parameters


def name_of(reward: Callable) -> str:
    """What to call a reward in messages and records."""
    for attribute in ("name", "__qualname__"):
        if isinstance(name := getattr(reward, attribute, None), str):
            return name
    return type(reward).__name__


def call(reward: Callable, samples: Any, n: int, offers: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Call `reward` on n samples and check what comes back: (n,) scores and the parts, on whatever device, graph intact."""
    answer = reward(samples, **{name: offers[name] for name in asks_for(reward)})
    parts: dict[str, Tensor] = {}
    if isinstance(answer, Scores):
        answer, parts = answer.total, answer.parts
    return _column(answer, n, reward, ""), {k: _column(v, n, reward, f" for its part {k!r}") for k, v in parts.items()}


def _column(value: Tensor | Sequence[float], n: int, reward: Callable, where: str) -> Tensor:
    try:
        column = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the reward {name_of(reward)} returned {type(value).__name__}{where}; it must return {n} numbers, one per sample"
        ) from error
    if column.shape != (n,):
        raise ValueError(
            f"the reward {name_of(reward)} returned shape {tuple(column.shape)}{where} for {n} samples; it must return ({n},), one "
            f"number per sample" + (" (a mean over the batch? score each sample by itself)" if column.ndim == 0 else "")
        )
    if column.is_complex():
        raise TypeError(f"the reward {name_of(reward)} returned complex numbers{where}")
    return column
