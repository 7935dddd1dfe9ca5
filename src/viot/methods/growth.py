"""Trees while they grow: the arrays of `viot.tree.Tree` with room for more, and every node's children at hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tree import Tree

GROWN = ("parent", "level", "value", "visits", "x")


def seedling(indices: Sequence[int], steps: Sequence[int], lam: float, x: Tensor) -> Tree:
    """The roots of these groups and nothing else; x (·, *event_shape) tells shape and precision of the states."""
    groups = len(indices)
    return Tree(
        parent=torch.full((groups,), -1),
        level=torch.zeros(groups, dtype=torch.long),
        value=torch.zeros(groups, dtype=torch.float64),
        visits=torch.ones(groups, dtype=torch.long),
        x=torch.zeros(groups, *x.shape[1:], dtype=x.dtype),
        steps=torch.tensor(list(steps)),
        indices=torch.tensor(list(indices)),
        lam=lam,
    )


class Growth:
    """Grows a copy of a tree. States stay on the CPU; what has been handed out by `tree` never changes."""

    def __init__(self, tree: Tree) -> None:
        self.steps, self.indices, self.lam, self.n = tree.steps, tree.indices, tree.lam, len(tree)
        self.room = {name: getattr(tree, name).clone() for name in GROWN}
        self.parts = {name: value.clone() for name, value in tree.parts.items()}
        # The children of node i are pool[first[i] : first[i] + born[i]], with place for seats[i] of them.
        self.pool, self.used = torch.empty(1024, dtype=torch.long), 0
        self.first, self.born, self.seats = ([0] * self.n for _ in range(3))
        for child, parent in enumerate(tree.parent.tolist()):
            if parent >= 0:
                self._adopt(parent, child)

    def __getattr__(self, name: str) -> Tensor:
        if name in GROWN:
            return self.room[name]
        raise AttributeError(name)

    def children(self, node: int) -> Tensor:
        """The children of a node, in the order of their birth."""
        return self.pool[self.first[node] : self.first[node] + self.born[node]]

    def add(self, parents: Tensor, level: int, x: Tensor) -> Tensor:
        """New nodes (m,) at one level, for parents (m,) and states x (m, *event_shape); returns their numbers."""
        begin, end = self.n, self.n + len(parents)
        self._fit(end)
        self.room["parent"][begin:end] = parents
        self.room["level"][begin:end] = level
        self.room["value"][begin:end] = 0.0
        # The rollout that made an inner node has come through it; a leaf is where it stopped.
        self.room["visits"][begin:end] = 1 if level == len(self.steps) - 1 else 2
        self.room["x"][begin:end] = x.cpu()
        for part in self.parts.values():
            part[begin:end] = torch.nan
        for kept in (self.first, self.born, self.seats):
            kept.extend([0] * len(parents))
        for child, parent in enumerate(parents.tolist(), begin):
            self._adopt(parent, child)
        self.n = end
        return torch.arange(begin, end)

    def note(self, nodes: Tensor, parts: dict[str, Tensor]) -> None:
        """Keep the parts of a combined reward of these leaves."""
        for name, value in parts.items():
            if name not in self.parts:
                self.parts[name] = torch.full((len(self.room["parent"]),), torch.nan, dtype=torch.float64)
            self.parts[name][nodes] = value

    def tree(self) -> Tree:
        """The tree as it stands. States, parents and levels are never written twice and so may be shared; the rest is copied."""
        n = self.n
        shared = {name: self.room[name][:n] for name in ("parent", "level", "x")}
        copied = {name: self.room[name][:n].clone() for name in ("value", "visits")}
        parts = {name: value[:n].clone() for name, value in self.parts.items()}
        return Tree(**shared, **copied, steps=self.steps, indices=self.indices, lam=self.lam, parts=parts)

    def _fit(self, n: int) -> None:
        for arrays in (self.room, self.parts):
            for name, value in arrays.items():
                if n > len(value):
                    arrays[name] = _longer(value, max(n, len(value) * 3 // 2 + 64))

    def _adopt(self, parent: int, child: int) -> None:
        if self.born[parent] == self.seats[parent]:
            seats = max(2, 2 * self.seats[parent])
            if self.used + seats > len(self.pool):
                self.pool = _longer(self.pool, 2 * len(self.pool) + seats)
            self.pool[self.used : self.used + self.born[parent]] = self.children(parent)
            self.first[parent], self.seats[parent], self.used = self.used, seats, self.used + seats
        self.pool[self.first[parent] + self.born[parent]] = child
        self.born[parent] += 1


def _longer(value: Tensor, n: int) -> Tensor:
    out = value.new_empty(n, *value.shape[1:])
    out[: len(value)] = value
    return out
