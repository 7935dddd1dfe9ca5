"""The loop that tree methods share: rounds of choosing nodes, rolling all of them out together, and backing values up. A tree method is this
loop with other verbs: `descend` (which child to go on with), `backed` (a node's value from its children's) and `drawn` (the answer).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..particles import State, pick
from ..problem import Problem
from ..tree import Tree
from .growth import Growth, seedling
from .method import Method
from .smc import EVERY_TENTH, Schedule, require_life, scoring_steps

#: A tree is full when a round comes back to finished samples so often in a row without finding anything to expand: with alpha = 0 it has a
#: fixed size, and with a small one the next child is too many visits away.
FULL = 1000
#: What a state between two steps of a round has in flight.
FLIGHT = "flight.x"


@dataclass(frozen=True)
class TreeSearch(Method):
    """A search tree per group, grown until the budget is spent.

    schedule    branch points as fractions of T; the root, from which noise is drawn, is one always
    c, alpha    children that a node of N visits may have: c · N^alpha (progressive widening)
    leaves      rollouts per round and group: chosen one after the other, each choice counting as a visit for the next, rolled out together
    eta         noise of the steps, > 0

    What a state holds between two steps of a round is in flight, under `flight.` in `state.group`; the tree itself is under `tree.`.
    """

    schedule: Schedule = EVERY_TENTH
    c: float = 2.0
    alpha: float = 0.8
    leaves: int = 32
    eta: float = 1.0

    def __post_init__(self) -> None:
        scoring_steps(self.schedule, 1000)
        if not 1 <= self.c < math.inf or not 0 <= self.alpha <= 1:
            raise ValueError(f"a node may have c · N^alpha children, with c ≥ 1 and alpha in [0, 1], not c={self.c}, alpha={self.alpha}")
        if self.leaves < 1:
            raise ValueError(f"a round needs leaves ≥ 1, not {self.leaves}")
        if not 0 < self.eta < math.inf:
            raise ValueError(f"branches differ by their noise: {self.name} needs eta > 0 and finite, not {self.eta}")

    @property
    def has_log_z(self) -> bool:
        return False

    def branches(self, steps: int) -> list[int]:
        """Steps done at each level of the tree: 0 for the root, the branch points, T for the leaves."""
        return [0, *(j for j in scoring_steps(self.schedule, steps) if j), steps]

    def law(self, problem: Problem) -> float:
        """λ of the tree's choices."""
        return problem.lam

    # -- growing ------------------------------------------------------------------------------------------------------------------

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        state = self.plant(problem) if state is None else state
        growth = Growth(Tree.held(state))
        while FLIGHT in state.group or bool(self.searching(problem, state).any()):
            if FLIGHT not in state.group:
                state = self.depart(problem, state, growth)
            while FLIGHT in state.group:
                landing = int(state.group["flight.step"]) == problem.T
                state = self.land(problem, state, growth) if landing else self.fly(problem, state, growth)
                done = problem.T * problem.evaluate.cost.nfe // (problem.G * problem.budget)
                yield (state := state.but(step=min(done, problem.T - 1), cost=problem.evaluate.cost.record()))
        yield self.settle(problem, state)

    def plant(self, problem: Problem) -> State:
        """Before the first round: roots."""
        # One state of each group, for its shape.
        x, counts = problem.prior_rows([1] * problem.G), torch.zeros(problem.G, dtype=torch.long)
        one = torch.zeros(problem.G, 1, dtype=torch.float64)
        state = State(x=problem.fold(x), step=0, log_w=one, rewards=one + torch.nan, roots=one.long())
        tree = seedling(problem.groups, self.branches(problem.T), self.law(problem), x)
        return tree.hold(state.with_group(round=torch.tensor(0), spent=counts, ended=counts.bool()))

    def searching(self, problem: Problem, state: State) -> Tensor:
        """(G,) which groups go on: those that can afford a whole chain, and are not full."""
        return (problem.budget - state.group["spent"] >= problem.T) & ~state.group["ended"]

    def price(self, problem: Problem, growth: Growth, node: int) -> int:
        """Network rows from a node to a finished sample."""
        return problem.T - int(growth.steps[growth.level[node]])

    def choose(self, problem: Problem, growth: Growth, root: int, spent: int, generator: torch.Generator) -> list[int]:
        """The nodes that one group expands in this round, a node once for each of its new children."""
        found: list[int] = []
        pending: dict[int, int] = {}
        last, visits, returns = len(growth.steps) - 1, growth.visits, 0
        while len(found) < self.leaves and problem.budget - spent >= problem.T and returns < FULL:
            path, node = [root], root
            while int(growth.level[node]) < last and growth.born[node] + pending.get(node, 0) >= self.c * int(visits[node]) ** self.alpha:
                if not growth.born[node]:
                    # All of its children are only about to be born: they have to be known first.
                    return found
                node = self.descend(growth, node, generator)
                path.append(node)
            finished = int(growth.level[node]) == last
            # Visited, before what will be found there is known: the next selection of the round takes it into account.
            visits[path[:-1] if finished else path] += 1
            if finished:
                returns += 1
                continue
            returns = 0
            pending[node] = pending.get(node, 0) + 1
            found.append(node)
            spent += self.price(problem, growth, node)
        return found

    def depart(self, problem: Problem, state: State, growth: Growth) -> State:
        """A round begins: nodes are chosen in every group, and the states to roll out from them are in flight."""
        search, round = self.searching(problem, state), int(state.group["round"])
        spent, ended = state.group["spent"].clone(), state.group["ended"].clone()
        with problem.evaluate.cost.timed("selection"):
            draws = problem.draw(0, "select", round).generators
            found = [self.choose(problem, growth, g, int(spent[g]), draws[g]) if search[g] else [] for g in range(problem.G)]
        for g, nodes in enumerate(found):
            spent[g] += sum(self.price(problem, growth, node) for node in nodes)
            ended[g] |= bool(search[g]) and not nodes
        state = growth.tree().hold(state).with_group(spent=spent, ended=ended, round=torch.tensor(round + 1))
        if not any(found):
            return state
        group = torch.tensor([g for g, nodes in enumerate(found) for _ in nodes])
        node = torch.tensor([node for nodes in found for node in nodes])
        x, top = growth.x[node], growth.level[node] == 0
        if bool(top.any()):
            x[top] = problem.prior_rows(_counts(problem, group[top]), round).cpu()
        begin = growth.steps[growth.level[node]]
        track = x.new_zeros(len(x), len(growth.steps), *x.shape[1:])
        flight = {"x": x.to(problem.evaluate.model.device), "group": group, "node": node, "begin": begin, "track": track}
        return state.with_group(**{f"flight.{k}": v for k, v in flight.items()}, **{"flight.step": begin.min()})

    def fly(self, problem: Problem, state: State, growth: Growth) -> State:
        """One step of all that is in flight and has begun, at one time. Who starts deeper waits for the others to get there."""
        flight, j = state.group, int(state.group["flight.step"])
        on = torch.nonzero(flight["flight.begin"] <= j)[:, 0]
        here, x, group = on.to(state.x.device), flight["flight.x"].clone(), flight["flight.group"][on]
        prediction = problem.evaluate(x[here], problem.grid.times[j], torch.tensor(problem.groups)[group])[0]
        eta = self.eta if j < problem.T - 1 else 0.0
        draw = problem.draw(j, "propose", int(flight["round"]), _counts(problem, group))
        x[here] = problem.kernel.step(x[here], prediction, problem.grid.coeffs(j), eta, draw)[0]
        track, levels = flight["flight.track"], growth.steps.tolist()
        if j + 1 in levels:
            track = track.clone()
            track[on, levels.index(j + 1)] = x[here].cpu()
        return state.with_group(**{"flight.x": x, "flight.track": track, "flight.step": torch.tensor(j + 1)})

    def land(self, problem: Problem, state: State, growth: Growth) -> State:
        """A round ends: finished samples are scored, what was passed on the way becomes nodes, values go up to the roots."""
        flight, index, round = state.group, torch.tensor(problem.groups), int(state.group["round"])
        # All leaves of a round may be faults without the search being over.
        scored = problem.evaluate.score(flight["flight.x"], index[flight["flight.group"]], purpose=f"reward {round}", everybody=False)
        with problem.evaluate.cost.timed("selection"):
            node = flight["flight.node"].clone()
            for level, step in enumerate(growth.steps.tolist()):
                passed = torch.nonzero(flight["flight.begin"] < step)[:, 0]
                if len(passed):
                    node[passed] = growth.add(node[passed], level, flight["flight.track"][passed, level])
            growth.value[node] = scored.rewards
            growth.note(node, scored.parts)
            self.back_up(problem, growth, node)
            state = _better(state, growth, node)
        kept = {name: value for name, value in state.group.items() if not name.startswith("flight.")}
        return growth.tree().hold(state.but(group=kept))

    def back_up(self, problem: Problem, growth: Growth, leaves: Tensor) -> None:
        """New values along the paths of new leaves, from the bottom up."""
        nodes = leaves
        for _ in growth.steps[1:]:
            nodes = growth.parent[nodes].unique()
            for node in nodes.tolist():
                growth.value[node] = self.backed(growth.value[growth.children(node)], problem.lam)

    # -- drawing ------------------------------------------------------------------------------------------------------------------

    def settle(self, problem: Problem, state: State) -> State:
        """The answer of the tree as it stands, after any round: K draws, decoded."""
        tree = Tree.held(state)
        if not len(tree.leaves):
            raise ValueError("this tree has no finished sample yet; settle a state that the run has yielded")
        drawn, log_w = self.drawn(problem, tree)
        # A leaf that is drawn several times is decoded once.
        once, copy = drawn.unique(return_inverse=True)
        device, index = problem.evaluate.model.device, torch.tensor(problem.groups)
        samples = problem.evaluate.decode(tree.x[once].to(device), index[tree.group[once]])
        state = state.but(
            x=tree.x[drawn].to(device),
            step=problem.T,
            log_w=log_w,
            rewards=tree.value[drawn],
            roots=tree.roots[drawn],
            parts={name: part[drawn] for name, part in tree.parts.items()},
            samples=pick(samples, copy.flatten()),
        )
        require_life(problem, log_w)
        return state.but(done=True, cost=problem.evaluate.cost.record())

    # -- the verbs ----------------------------------------------------------------------------------------------------------------

    def descend(self, growth: Growth, node: int, generator: torch.Generator) -> int:
        """The child of a node to go on with."""
        raise NotImplementedError

    def backed(self, values: Tensor, lam: float) -> Tensor:
        """The value of a node from those of its children."""
        raise NotImplementedError

    def drawn(self, problem: Problem, tree: Tree) -> tuple[Tensor, Tensor]:
        """The answer: leaves (G, K) and their log-weights."""
        raise NotImplementedError


def _counts(problem: Problem, group: Tensor) -> list[int]:
    """How many rows each group has."""
    return torch.bincount(group, minlength=problem.G).tolist()


def _better(state: State, growth: Growth, leaves: Tensor) -> State:
    """Between two rounds the tree shows one particle: the best finished sample of each group."""
    x, rewards, roots = state.x.clone(), state.rewards.clone(), state.roots.clone()
    for leaf in leaves.tolist():
        path = [leaf]
        while growth.parent[path[-1]] >= 0:
            path.append(int(growth.parent[path[-1]]))
        g = path[-1]
        if not growth.value[leaf] <= rewards[g, 0]:
            x[g, 0], rewards[g, 0] = growth.x[leaf], growth.value[leaf]
            roots[g, 0] = int(torch.nonzero(growth.children(g) == path[-2])[0])
    return state.but(x=x, rewards=rewards, roots=roots)
