"""Who reads what a reward asked for without having steered toward it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..registry import Registry

#: Classifiers that steer nobody, by the names of the rewards that they check: modules, samples (n, …) -> logits (n, classes).
referees = Registry("referee")

#: Samples that are read at once.
SLICE = 500


@referees.add("digit", "another classifier of digits")
@referees.add("digits", "another classifier of digits")
def _digits() -> Any:
    from .digits import judge

    return judge()


@referees.add("cifar", "another classifier of CIFAR-10's classes")
@referees.add("cifar-resnet", "another classifier of CIFAR-10's classes")
def _cifar() -> Any:
    from .cifar import judge

    return judge()


@dataclass(frozen=True)
class Referee:
    """Reads samples by a classifier that steers nobody, and says of each whether it is of the classes that a reward wanted.

    network   samples (n, …) -> logits (n, classes)
    wanted    indices of classes
    """

    network: Any
    wanted: tuple[int, ...]

    @classmethod
    def of(cls, reward: Any) -> Referee | None:
        """For the name of a reward that asks for classes (its attribute `wanted`) and has one of `referees`; None for all others."""
        name = reward.partition(":")[0] if isinstance(reward, str) else ""
        # The reward is made only where there is somebody to check it: some are gigabytes.
        if name not in referees:
            return None
        from . import as_reward

        wanted: Any = as_reward(reward)
        return cls(referees[name].make(), tuple(wanted.wanted))

    @torch.no_grad()
    def agrees(self, samples: Tensor) -> Tensor:
        """(n,) bool on the CPU: which samples it reads as wanted."""
        device = next(self.network.parameters()).device
        read = torch.cat([self.network(part.to(device)).argmax(-1).cpu() for part in samples.split(SLICE)])
        return torch.isin(read, torch.tensor(self.wanted))
