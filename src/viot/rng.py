"""Random numbers that belong to a group: the same whichever others run beside it, in whatever slices, on however many processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rng:
    """Randomness that belongs to the group: a stream for each (seed, group, round, step, purpose), always drawn on the CPU.

    (torch's CPU generator keeps 32 bits of a seed, so among very many streams a few pairs coincide, in places that never meet.) A group's numbers are the same whichever other groups run beside it, in whatever slices, on however many processes.
    """

    seed: int

    def generator(self, group: int, round: int, step: int, purpose: str) -> torch.Generator:
        key = f"{self.seed}/{group}/{round}/{step}/{purpose}".encode()
        number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
        return torch.Generator().manual_seed(number)


class Draw:
    """One purpose's stream at one step, for all groups: rows are group-major, and each group draws for all of its rows at once.

    Every group has as many rows, or its own share of them: `counts`, one per group.
    """

    def __init__(
        self, rng: Rng, groups: Sequence[int], step: int, purpose: str, round: int = 0, counts: Sequence[int] | None = None
    ) -> None:
        self._make = lambda: [rng.generator(g, round, step, purpose) for g in groups]
        self._generators: list[torch.Generator] | None = None
        self._counts = [1] * len(groups) if counts is None else list(counts)

    @property
    def generators(self) -> list[torch.Generator]:
        """One per group, made when first needed; successive draws go on along the same streams."""
        if self._generators is None:
            self._generators = self._make()
        return self._generators

    def _fill(self, fill: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
        out = torch.empty(shape, dtype=dtype)
        if shape[0]:
            each = shape[0] // sum(self._counts)
            for part, generator in zip(out.split([each * n for n in self._counts]), self.generators, strict=True):
                fill(part, generator=generator)
        return out.to(device)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, `shape[0]` rows divided among the groups."""
        return self._fill(Tensor.normal_, shape, dtype, device)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform numbers in [0, 1), float64 on the CPU."""
        return self._fill(Tensor.uniform_, shape, torch.float64, "cpu")
