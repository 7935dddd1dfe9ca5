r"""DTS and DTS*: diffusion tree sampling and search (arXiv 2506.20701)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .. import weights
from ..particles import State, copies
from ..problem import Problem
from ..tree import Tree
from ..value import soft_mean
from ..weights import NEG_INF
from .growth import Growth
from .independent import evened
from .method import methods
from .search import TreeSearch


@methods.add(
    "dts",
    "diffusion tree sampling: a search tree whose draws tend to π, stopped at any time",
    cost="K·T network calls, one reward per finished sample",
)
@dataclass(frozen=True)
class DTS(TreeSearch):
    r"""Diffusion tree sampling, section 4 of arXiv 2506.20701. A tree over the branch points of the chain; with N visits and children C,

        select     from the root on, a child c ∝ exp(λ v_c), as long as |C| ≥ c · N^alpha (progressive widening)
        expand     a new child of the node reached, and on to a finished sample x_0; every branch point on the way becomes a node
        back up    v = (1/λ) log mean_c exp(λ v_c) along the path, up to the root; r(x_0) at leaves

    until the budget is spent; then K draws from the tree by the same choice of children (algorithm 2), systematically: each has the law of an
    independent one, and a leaf of probability p comes within one of K·p times. The draws tend to π as the budget grows, slowly: a node whose
    first rollouts were unlucky is hardly visited again, so soft values lag behind, by a tenth of the tilt at budgets of hundreds to
    thousands of chains; there is no weight to correct it. An expansion costs the steps from its node to the end, coming back to a finished sample costs nothing.

    A round selects `leaves` nodes one after the other, each selection counting as a visit for the next, and rolls them out together. With
    leaves=1 it is algorithm 1 to the letter; nearly all selections of a small budget expand the root anyway.

    schedule    branch points as fractions of T; the root, from which noise is drawn, is one always
    c, alpha    children that a node of N visits may have: c · N^alpha (0.7 for text in the paper)
    leaves      rollouts per round and group
    eta         noise of the steps, > 0
    """

    name: ClassVar[str] = "dts"
    reference: ClassVar[str] = "arXiv 2506.20701"

    def descend(self, growth: Growth, node: int, generator: torch.Generator) -> int:
        """One of the node's children, in proportion to exp(λ v)."""
        children = growth.children(node)
        u = torch.rand((), generator=generator, dtype=torch.float64)
        return int(children[weights.draw(weights.tilt(growth.value[children], growth.lam), u)])

    def backed(self, values: Tensor, lam: float) -> Tensor:
        """The value of a node from those of its children."""
        return soft_mean(values, lam)

    def drawn(self, problem: Problem, tree: Tree) -> tuple[Tensor, Tensor]:
        """Leaves (G, K) and their log-weights."""
        u = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in problem.draw(0, "draw").generators])
        leaves = tree.points(problem.K, u)
        return leaves, weights.equal(tree.value[leaves] > NEG_INF)


@methods.add(
    "dts-star",
    "diffusion tree search: the same tree, grown toward its best branches; a maximiser",
    cost="K·T network calls, one reward per finished sample",
)
@dataclass(frozen=True)
class DTSStar(DTS):
    r"""Diffusion tree search, section 4.3 of arXiv 2506.20701: selects the child of the highest v_c + c_uct √(log N / N_c), and returns the best
    distinct finished samples it found, uniformly weighted.

    keep     how many it returns, as a share of K: a small budget finds little more than K samples, of which the last are not much steered
    c_uct    how much to try what has been tried little, in units of the reward; 0 is greedy
    backup   "soft", as in DTS with the run's λ, or "max", its limit λ → ∞ (the paper's choice for text)
    """

    name: ClassVar[str] = "dts-star"

    keep: float = 0.25
    c_uct: float = 1.0
    backup: Literal["soft", "max"] = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is a share of K in (0, 1], not {self.keep}")
        if not 0 <= self.c_uct < math.inf:
            raise ValueError(f"c_uct must be ≥ 0 and finite, not {self.c_uct}")
        if self.backup not in ("soft", "max"):
            raise ValueError(f"backup must be 'soft' or 'max', not {self.backup!r}")

    @property
    def exact(self) -> bool:
        return False

    def law(self, problem: Problem) -> float:
        return math.inf

    def plant(self, problem: Problem) -> State:
        if problem.lam < 0:
            raise ValueError("dts-star maximises the reward; to minimise it, negate the reward instead of λ")
        return super().plant(problem)

    def descend(self, growth: Growth, node: int, generator: torch.Generator) -> int:
        children = growth.children(node)
        bonus = (math.log(int(growth.visits[node])) / growth.visits[children].double()).sqrt()
        return int(children[(growth.value[children] + self.c_uct * bonus).argmax()])

    def backed(self, values: Tensor, lam: float) -> Tensor:
        return values.max() if self.backup == "max" else super().backed(values, lam)

    def drawn(self, problem: Problem, tree: Tree) -> tuple[Tensor, Tensor]:
        # The best of each group; the group with the most decides how many, others are filled up with copies of no weight.
        leaves, group = tree.leaves, tree.group
        ranked = leaves[tree.value[leaves].argsort(descending=True, stable=True)]
        mine = [ranked[group[ranked] == g] for g in range(problem.G)]
        mine = [m[~copies(tree.x[m])][: math.ceil(self.keep * problem.K)] for m in mine]
        chosen, copy = evened(mine)
        return chosen, weights.equal(~copy & (tree.value[chosen] > NEG_INF))
