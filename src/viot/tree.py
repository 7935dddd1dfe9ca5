"""Search trees in flat arrays: what a tree method builds, keeps, saves and draws from. No method and no model in here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from . import weights
from .particles import State, write_tensors
from .rng import Rng


@dataclass(frozen=True)
class Tree:
    """The trees of G groups side by side: N nodes in the order in which they grew, the first G of which are the roots.

    A node stands at a branch point of the chain: level 0 is the root, from which noise is drawn, the last level are the leaves, finished
    samples x_0. Between branch points nothing is kept.

    parent   (N,) the node that each descends from; −1 for roots         x      (N, *event_shape) the state, zeros for roots
    level    (N,) position in `steps`                                    value  (N,) soft value in units of the reward; r(x_0) of leaves
    visits   (N,) 1 + rollouts that came through; 1 for leaves           parts  name -> (N,) of a combined reward, NaN but at leaves
    steps    (L,) steps done at each level: 0 … T                        lam    λ of the draws; +inf follows the best child
    indices  (G,) the index of each group, which names its random streams
    """

    parent: Tensor
    level: Tensor
    value: Tensor
    visits: Tensor
    x: Tensor
    steps: Tensor
    indices: Tensor
    lam: float
    parts: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def groups(self) -> int:
        return int((self.parent < 0).sum())

    @cached_property
    def group(self) -> Tensor:
        """(N,) the position of each node's group."""
        found = torch.arange(len(self))
        # Parents come before their children, so that a level's groups follow from those of the level above.
        for depth in range(1, len(self.steps)):
            here = self.level == depth
            found[here] = found[self.parent[here]]
        return found

    @cached_property
    def leaves(self) -> Tensor:
        """(M,) the nodes that are finished samples, in the order in which they were found."""
        return torch.nonzero(self.level == len(self.steps) - 1)[:, 0]

    @cached_property
    def roots(self) -> Tensor:
        """(N,) the draw of x_T that each node descends from, numbered within its group; −1 for the roots themselves."""
        found = torch.full((len(self),), -1)
        top, group = self.level == 1, self.group
        for g in range(self.groups):
            mine = top & (group == g)
            found[mine] = torch.arange(int(mine.sum()))
        for depth in range(2, len(self.steps)):
            here = self.level == depth
            found[here] = found[self.parent[here]]
        return found

    @cached_property
    def log_law(self) -> Tensor:
        """(N,) log-probability that a draw passes through each node: from the root down, children in proportion to exp(λ value).

        NaN below a node of whose children none is possible (values of −inf).
        """
        log_p = torch.zeros(len(self), dtype=torch.float64)
        score = weights.tilt(self.value, self.lam) if self.lam < float("inf") else self._best()
        for depth in range(1, len(self.steps)):
            here = torch.nonzero(self.level == depth)[:, 0]
            above = self.parent[here]
            log_p[here] = log_p[above] + score[here] - _segment_logsumexp(score[here], above, len(self))[above]
        return log_p

    def _best(self) -> Tensor:
        """(N,) 0 for the best of each node's children, −inf for the others: the first of several equal ones."""
        score = torch.full((len(self),), weights.NEG_INF, dtype=torch.float64)
        below = torch.nonzero(self.parent >= 0)[:, 0]
        order = below[self.value[below].argsort(descending=True, stable=True)]
        order = order[self.parent[order].argsort(stable=True)]
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = self.parent[order][1:] != self.parent[order][:-1]
        best = order[first]
        score[best[self.value[best] > weights.NEG_INF]] = 0.0
        return score

    def draw(self, n: int, seed: int = 0) -> Tensor:
        """(G, n) leaves drawn with replacement by the tree's own law. No network calls.

        Systematically, n equidistant points on the cumulative law: each draw has the law of an independent one, and a leaf of
        probability p comes ⌊n p⌋ or ⌈n p⌉ times.
        """
        if n < 1:
            raise ValueError(f"draw(n) takes n ≥ 1, not {n}")
        u = [torch.rand(1, generator=Rng(seed).generator(g, 0, 0, "draw"), dtype=torch.float64) for g in self.indices.tolist()]
        return self.points(n, torch.cat(u))

    def points(self, n: int, u: Tensor) -> Tensor:
        """The draws (G, n) that belong to one uniform number u (G,) per group; in a dead group the leaves in turn."""
        leaves, log_p, group = self.leaves, self.log_law, self.group
        out = torch.zeros(self.groups, n, dtype=torch.long)
        for g in range(self.groups):
            mine = leaves[group[leaves] == g]
            p = log_p[mine].exp().nan_to_num_(nan=0.0)
            if not bool((p > 0).any()):
                out[g] = mine[torch.arange(n) % len(mine)]
                continue
            edges = p.cumsum(0)
            at = (torch.arange(n, dtype=torch.float64) + u[g]) / n * edges[-1]
            out[g] = mine[torch.searchsorted(edges, at, right=True).clamp_max(int(torch.nonzero(p)[-1]))]
        return out

    def best_path(self, g: int = 0) -> list[int]:
        """From the root of group position g down to the finished sample of the highest reward."""
        leaves, group = self.leaves, self.group
        mine = leaves[group[leaves] == g]
        path = [int(mine[self.value[mine].argmax()])]
        while int(self.parent[path[-1]]) >= 0:
            path.append(int(self.parent[path[-1]]))
        return path[::-1]

    # -- on disk ------------------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a file or for the state of a run."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("lam", "parts")}
        return {**arrays, "lam": torch.tensor(self.lam, dtype=torch.float64), **{f"parts.{k}": v for k, v in self.parts.items()}}

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Tree:
        """The inverse of `tensors`."""
        parts = {k[len("parts.") :]: v for k, v in tensors.items() if k.startswith("parts.")}
        rest = {f.name: tensors[f.name] for f in fields(cls) if f.name not in ("lam", "parts")}
        return cls(**rest, lam=float(tensors["lam"]), parts=parts)

    def hold(self, state: State) -> State:
        """A state of a run with this tree in it."""
        return state.with_group(**{f"tree.{name}": value for name, value in self.tensors().items()})

    @classmethod
    def held(cls, state: State) -> Tree:
        """The tree in a state of a run."""
        return cls.of({name[len("tree.") :]: value for name, value in state.group.items() if name.startswith("tree.")})

    @staticmethod
    def grows(state: State) -> bool:
        """Is there a tree in this state?"""
        return "tree.value" in state.group

    def save(self, path: str | Path) -> None:
        """One safetensors file, whole or not at all."""
        write_tensors(path, self.tensors(), {"format": "viot tree 1"})

    @classmethod
    def load(cls, path: str | Path) -> Tree:
        with safe_open(str(path), "pt") as file:
            return cls.of({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)


def _segment_logsumexp(value: Tensor, segment: Tensor, n: int) -> Tensor:
    """(n,) logsumexp of the values of each segment; −inf of an empty one."""
    top = torch.full((n,), weights.NEG_INF, dtype=value.dtype).scatter_reduce(0, segment, value, "amax")
    shift = torch.where(top > weights.NEG_INF, top, 0.0)
    return torch.zeros(n, dtype=value.dtype).index_add(0, segment, (value - shift[segment]).exp()).log() + shift
