"""Several rewards at once, each kept in view, and rewards with noise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..reward import Scores, asks_for, call, name_of
from . import as_reward


def _asked(*rewards: Callable) -> tuple[str, ...]:
    """What these rewards ask for together, beside the group and the noise that a combination needs itself."""
    return ("group", "noise", *(("prompts",) if any("prompts" in asks_for(r) for r in rewards) else ()))


def _declared(*rewards: Callable) -> bool | None:
    """What members declare of their gradients: False where one has none, True where all have, None = to be found out."""
    said = [getattr(r, "differentiable", None) for r in rewards]
    return False if False in said else True if all(said) else None


class _Combination:
    """Named rewards scored on the same samples; `parts` of the population keeps each one's raw scores."""

    def __init__(self, rewards: Mapping[str, Callable | str] | list[Callable | str]) -> None:
        if not isinstance(rewards, Mapping):
            listed, rewards = rewards, {}
            for r in listed:
                name = name_of(r) if callable(r) else r
                again = sum(known == name or known.startswith(f"{name} #") for known in rewards)
                rewards[f"{name} #{again + 1}" if again else name] = r
        if not rewards:
            raise ValueError(f"{type(self).__name__} needs at least one reward")
        self.rewards = {name: as_reward(r) for name, r in rewards.items()}
        self.asks = _asked(*self.rewards.values())
        self.name = f"{type(self).__name__.lower()}({', '.join(self.rewards)})"
        self.noises = sum(getattr(r, "noises", 1) for r in self.rewards.values())
        self.differentiable = _declared(*self.rewards.values())

    def __call__(self, samples: Any, group: Tensor, noise: Tensor, prompts: Any = None) -> Scores:
        parts: dict[str, Tensor] = {}
        streams = noise.reshape(len(noise), -1)
        for name, reward in self.rewards.items():
            # Each member has noise of its own.
            width = getattr(reward, "noises", 1)
            own, streams = streams[:, :width], streams[:, width:]
            offers = {"group": group, "prompts": prompts, "noise": own if width > 1 else own[:, 0]}
            parts[name], inner = call(reward, samples, len(group), offers)
            parts |= {f"{name}.{key}": value for key, value in inner.items()}
        # Members may answer from different devices.
        parts = {name: value.to(group.device) for name, value in parts.items()}
        return Scores(self.combine({name: parts[name] for name in self.rewards}), parts)

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError


class Sum(_Combination):
    """Σ_i w_i r_i: `Sum(["digit:7", "brightness"], weights=[1, 3])`, or with names of your own as a mapping."""

    def __init__(self, rewards: Mapping[str, Callable | str] | list[Callable | str], weights: list[float] | None = None) -> None:
        super().__init__(rewards)
        weights = [1.0] * len(self.rewards) if weights is None else [float(w) for w in weights]
        if len(weights) != len(self.rewards) or not all(map(math.isfinite, weights)):
            raise ValueError(f"Sum of {len(self.rewards)} rewards needs as many finite weights, not {weights}")
        self.weights = dict(zip(self.rewards, weights, strict=True))
        self.name = "sum(" + ", ".join(f"{w:g}·{name}" for name, w in self.weights.items()) + ")"

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        # A weight of 0 switches a reward off, even one of −inf.
        first = next(iter(parts.values()))
        return sum((w * parts[name] for name, w in self.weights.items() if w), start=torch.zeros_like(first))


def spelled(text: str) -> list[tuple[float, str]]:
    """Weights and names of a sum as it is written on a command line: `0.5*digit:4+2*brightness`."""
    found = []
    for member in re.split(rf"\+(?={_WEIGHT}\*)", text):
        weight, star, name = member.partition("*")
        if not star or not name or re.fullmatch(_WEIGHT, weight) is None:
            raise ValueError(f"a sum is weights and rewards, not {text!r}; write sum:0.5*digit:4+0.5*digit:9, every weight before its *")
        found.append((float(weight), name))
    return found


#: A plus that no weight follows belongs to a reward, as in regex:a+.
_WEIGHT = r"-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?"


class Min(_Combination):
    """min_i r_i: good only where everything is good."""

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack(list(parts.values())).amin(0)


class Product(_Combination):
    """A product of experts: rewards are log-densities up to temperature, Σ_i r_i / T_i, so exp(r) = Π_i exp(r_i)^(1/T_i)."""

    def __init__(self, rewards: Mapping[str, Callable | str] | list[Callable | str], temperatures: list[float] | None = None) -> None:
        super().__init__(rewards)
        temperatures = [1.0] * len(self.rewards) if temperatures is None else [float(t) for t in temperatures]
        if len(temperatures) != len(self.rewards) or any(not 0 < t < math.inf for t in temperatures):
            raise ValueError(f"Product of {len(self.rewards)} experts needs as many finite temperatures > 0, not {temperatures}")
        self.temperatures = dict(zip(self.rewards, temperatures, strict=True))

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.stack([parts[name] / t for name, t in self.temperatures.items()]).sum(0)


class Noisy:
    """r + σ ε, fresh noise at every scoring: a stand-in for judges and sampled preferences. A state is scored once, so a run repeats."""

    def __init__(self, reward: Callable | str, sigma: float) -> None:
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma must be ≥ 0 and finite, not {sigma}")
        self.reward, self.sigma = as_reward(reward), float(sigma)
        self.asks = _asked(self.reward)
        self.name = f"noisy({name_of(self.reward)}, {sigma:g})"
        # The last column is for this one, those before it for what is inside.
        self.noises = 1 + (getattr(self.reward, "noises", 1) if "noise" in asks_for(self.reward) else 0)
        self.differentiable = _declared(self.reward)

    def __call__(self, samples: Any, group: Tensor, noise: Tensor, prompts: Any = None) -> Scores:
        inner = noise if noise.ndim == 1 else noise[:, :-1]
        inner = inner[:, 0] if inner.ndim == 2 and inner.shape[1] == 1 else inner
        clean, parts = call(self.reward, samples, len(group), {"group": group, "prompts": prompts, "noise": inner})
        fresh = (noise if noise.ndim == 1 else noise[:, -1]).to(clean)
        return Scores(clean + self.sigma * fresh, {**parts, "clean": clean})
