"""The loop that searches by beams over masked sequences share: plan, plant, grow level by level, end. A method is this loop with other verbs:
`branched` (children of a level), `assess` (their scores) and `pruned` (who stays).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import weights
from ..kernel import Categorical
from ..model import Prediction
from ..particles import State, copies, dated
from ..problem import Problem, Scored
from ..weights import NEG_INF
from .brood import Brood, by_rank, hitting_times, times_of
from .independent import evened
from .method import Method
from .smc import require_life


@dataclass(frozen=True)
class BeamSearch(Method):
    """Beams of at most `width` masked sequences side by side, as many as the budget affords (or `beams`), a level of all of them at a time.

    reveal   tokens per level

    A state's particles are places: `width` of them for each beam, of which those with log_w = −inf are empty. `roots` is the number of the
    beam, `extra["cumlogp"]` log p of the tokens that a sequence was given by the search.
    """

    width: int = 4
    reveal: int = 1
    beams: int | None = None

    @property
    def exact(self) -> bool:
        return False

    @property
    def needs_tokens(self) -> bool:
        return True

    # -- the budget ---------------------------------------------------------------------------------------------------------------

    def afforded(self, problem: Problem) -> tuple[Tensor, Tensor, list[int]]:
        """Where each group starts, (G, length), how many masks it has, and its number of beams. No network call."""
        mask = self.mask(problem)
        x = problem.prior_rows([1] * problem.G).cpu()
        masked = (x == mask).sum(-1)
        prices = [self.price(n)[0] for n in masked.tolist()]
        if (price := max(prices)) > problem.budget:
            raise ValueError(
                f"the budget of {problem.budget} network rows per group is too small: one beam of {self.name} costs {price} (width {self.width}, "
                f"{int(masked.max())} masked tokens, {self.reveal} revealed per level). Use particles ≥ {math.ceil(price / problem.T)} or "
                f"budget ≥ {price}, or a smaller width, or a larger reveal."
            )
        most = [self.beams or problem.budget] * problem.G
        if not self.draws:
            # A beam is what it begins with.
            most = torch.minimum(masked, torch.tensor(most)).tolist()
        # A sequence without masks is its own answer.
        return x, masked, [min(problem.budget // cost, n) if cost else 1 for cost, n in zip(prices, most, strict=True)]

    def planned(self, problem: Problem) -> tuple[int, int, int, int]:
        """Rows of the run, over all groups: through network, decoder, reward and gradient; at most."""
        _, masked, beams = self.afforded(problem)
        prices = [self.price(n) for n in masked.tolist()]
        ends = [min(self.width, sizes[-1][1]) if (sizes := self.sizes(n)) else 1 for n in masked.tolist()]
        network = sum(b * cost for b, (cost, _) in zip(beams, prices, strict=True))
        scored = sum(b * rows if rows else 1 for b, (_, rows) in zip(beams, prices, strict=True))
        returned = problem.G * max(min(problem.K, b * n) for b, n in zip(beams, ends, strict=True))
        return network, scored + returned, scored, 0

    def mask(self, problem: Problem) -> int:
        if not isinstance(problem.kernel, Categorical):
            raise TypeError(
                f"{self.name} reveals tokens one by one: it needs a model of masked sequences, whose kernel is a viot.Categorical, and "
                f"{type(problem.evaluate.model).__name__} has {type(problem.kernel).__name__}. dts-star searches any model's states."
            )
        return problem.kernel.mask_id

    def check(self, problem: Problem) -> None:
        self.afforded(problem)

    def progress(self, problem: Problem, state: State) -> int:
        """How many of T steps the levels done so far amount to."""
        levels = math.ceil(int(state.group["masked"].max()) / self.reveal)
        return problem.T * state.step // max(1, levels)

    # -- growing ------------------------------------------------------------------------------------------------------------------

    def run(self, problem: Problem, state: State | None = None) -> Iterator[State]:
        state = self.plant(problem) if state is None else state
        while bool((open := self.open(problem, state)).any()):
            state = self.grow(problem, state, torch.nonzero(open.flatten())[:, 0])
            yield (state := state.but(step=state.step + 1, cost=problem.evaluate.cost.record()))
        yield self.end(problem, state)

    def plant(self, problem: Problem) -> State:
        """The first level: one sequence in each beam, or M copies of it. A group's places are its beams, of M places each; the rest are empty."""
        x, masked, count = self.afforded(problem)
        beams = torch.tensor(count)
        there = torch.arange(int(beams.max())) < beams[:, None]
        hits = torch.zeros(*there.shape, x.shape[-1], dtype=torch.float64)
        u = problem.draw(0, "time", counts=count).uniform((sum(count), x.shape[-1]))
        hits[there] = hitting_times(masked.repeat_interleave(beams), u, float(problem.grid.sigmas[0]))
        alive = there[..., None] & (torch.arange(self.width) < self.start)
        log_w = weights.equal(alive.flatten(1))
        zeros = torch.zeros_like(log_w)
        roots = torch.arange(there.shape[1]).repeat_interleave(self.width).repeat(problem.G, 1)
        state = State(
            x=x[:, None].repeat(1, log_w.shape[1], 1).to(problem.evaluate.model.device),
            step=0,
            log_w=log_w,
            rewards=zeros + torch.nan,
            roots=roots,
            extra={"cumlogp": zeros},
            group={"masked": masked, "beams": beams, "hits": hits},
        )
        return dated(state, self.mask(problem), 0)

    def open(self, problem: Problem, state: State) -> Tensor:
        """(G, places) bool: where a sequence is that still has masks."""
        return (state.log_w > NEG_INF) & (state.x == self.mask(problem)).any(-1).cpu()

    def grow(self, problem: Problem, state: State, node: Tensor) -> State:
        """A level: the sequences at places `node` (n,) of all groups branch, their children are scored, and each beam keeps M of them."""
        prediction, clock = self.look(problem, state, node), problem.evaluate.cost
        with clock.timed("selection"):
            brood = self.branched(problem, state, node, prediction)
        origin = node[brood.parent]
        scores, parts, ahead = self.assess(problem, state, origin, brood, prediction)
        with clock.timed("selection"):
            log_p = problem.rows(state.extra["cumlogp"])[origin] + brood.log_p
            kept, empty = self.pruned(problem, state, origin, brood, scores, log_p)
            to = torch.nonzero(kept >= 0)[:, 0]
            child = kept[to]

            def written(old: Tensor, new: Tensor) -> Tensor:
                return problem.fold(problem.rows(old).index_copy(0, to.to(old.device), new.to(old)[child.to(old.device)]))

            # All that a parent has comes along; what is new is written over it.
            source = torch.arange(len(kept)).index_copy(0, to, origin[child]).view_as(state.log_w)
            state = state.but(prediction=None)[source % source.shape[1]]
            none = torch.full_like(state.log_w, torch.nan)
            if ahead is not None:
                ahead = ahead.map(lambda v: written(problem.fold(v.new_zeros(len(kept), *v.shape[1:])), v))
            state = state.but(
                x=written(state.x, brood.x),
                log_w=torch.where(empty.view_as(state.log_w), NEG_INF, state.log_w),
                rewards=written(state.rewards, scores),
                parts=state.parts | {name: written(state.parts.get(name, none), value) for name, value in parts.items()},
                prediction=ahead,
            )
            return dated(state.with_extra(cumlogp=written(state.extra["cumlogp"], log_p)), self.mask(problem), state.step + 1)

    def look(self, problem: Problem, state: State, node: Tensor) -> Prediction:
        """One network call for each of the sequences at these places, unless they were called for their scores."""
        if state.prediction is not None:
            return state.prediction.map(lambda v: problem.rows(v)[node.to(v.device)])
        return self.predicted(problem, state, node, problem.rows(state.x)[node.to(state.x.device)], state.step)

    def predicted(self, problem: Problem, state: State, place: Tensor, x: Tensor, level: int) -> Prediction:
        """The network's answer for sequences x (n, length) of a level of the beams at these places, at the time when the next token appears."""
        group, beam = self.where(state, place)
        share = state.group["hits"][group, beam, min(level * self.reveal, x.shape[-1] - 1)]
        prediction = problem.evaluate(x, times_of(problem.grid, share), torch.tensor(problem.groups)[group])[0]
        if prediction.logits is None:
            raise ValueError(
                f"{self.name} reads the probabilities of tokens: it needs Prediction.logits (rows, length, vocabulary), and the model gave none"
            )
        return prediction

    def where(self, state: State, place: Tensor) -> tuple[Tensor, Tensor]:
        """The group and the beam of places (n,)."""
        return place // state.log_w.shape[1], place % state.log_w.shape[1] // self.width

    def uniform(self, problem: Problem, state: State, purpose: str, shape: tuple[int, ...], shared: bool = False) -> Tensor:
        """Uniform numbers (G · places, *shape) of this level; the same for all sequences of a beam where they are shared."""
        beams, each = state.group["beams"], 1 if shared else self.width
        there = torch.arange(state.log_w.shape[1] // self.width) < beams[:, None]
        u = problem.draw(state.step, purpose, counts=beams.tolist()).uniform((int(beams.sum()) * each, *shape))
        found = torch.zeros(*there.shape, each, *shape, dtype=torch.float64)
        found[there] = u.view(-1, each, *shape)
        return found.expand(-1, -1, self.width, *shape).flatten(0, 2)

    def finished(self, problem: Problem, x: Tensor, group: Tensor) -> Scored:
        """Score sequences without masks. All of a level may be faults without the search being over."""
        return problem.evaluate.score(x, group, everybody=False)

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def end(self, problem: Problem, state: State) -> State:
        """The best distinct sequences of all beams, at most K of them, decoded."""
        state, there = self.given(problem, state), state.log_w > NEG_INF
        worth, log_p, x = self.worth(problem, state.rewards, state.extra["cumlogp"]), state.extra["cumlogp"], state.x.cpu()
        group = torch.zeros(there.shape[1], dtype=torch.long)
        ranked = []
        for g in range(problem.G):
            order = by_rank(group, worth[g], log_p[g])
            order = order[there[g][order]]
            ranked.append(order[~copies(x[g][order])][: problem.K])
        chosen, copy = evened(ranked)
        state = state.but(prediction=None)[chosen]
        samples = problem.evaluate.decode(problem.rows(state.x), problem.group_rows(chosen.shape[1]))
        state = state.but(log_w=weights.equal(~copy & (state.rewards > NEG_INF)), samples=samples)
        require_life(problem, state.log_w)
        return state.but(done=True, cost=problem.evaluate.cost.record())

    def given(self, problem: Problem, state: State) -> State:
        """Sequences that had no mask to begin with have not been scored yet."""
        new = torch.nonzero(((state.log_w > NEG_INF) & state.rewards.isnan()).flatten())[:, 0]
        if not len(new):
            return state
        group = torch.tensor(problem.groups)[new // state.log_w.shape[1]]
        found = self.finished(problem, problem.rows(state.x)[new.to(state.x.device)], group)
        none = torch.full_like(state.log_w, torch.nan)
        scored = {"rewards": found.rewards, **found.parts}
        old = {"rewards": state.rewards, **{name: state.parts.get(name, none) for name in found.parts}}
        filled = {name: problem.fold(problem.rows(old[name]).index_copy(0, new, value)) for name, value in scored.items()}
        return state.but(rewards=filled.pop("rewards"), parts=state.parts | filled)

    # -- the verbs ----------------------------------------------------------------------------------------------------------------

    @property
    def start(self) -> int:
        """Sequences that a beam begins with."""
        return 1

    @property
    def draws(self) -> bool:
        """Is anything random about a beam?"""
        return True

    def sizes(self, masked: int) -> list[tuple[int, int]]:
        """How many sequences, and children of them, each level of a beam over so many masks has at most."""
        raise NotImplementedError

    def price(self, masked: int) -> tuple[int, int]:
        """Network and reward rows of a beam over so many masks, at most."""
        raise NotImplementedError

    def branched(self, problem: Problem, state: State, node: Tensor, prediction: Prediction) -> Brood:
        """The children of the sequences at places `node` (n,) of all groups."""
        raise NotImplementedError

    def assess(
        self, problem: Problem, state: State, origin: Tensor, brood: Brood, prediction: Prediction
    ) -> tuple[Tensor, dict[str, Tensor], Prediction | None]:
        """What children whose parents are at places `origin` are worth: scores (n,), the parts of finished ones, and what the network said of them."""
        raise NotImplementedError

    def worth(self, problem: Problem, scores: Tensor, log_p: Tensor) -> Tensor:
        """What sequences are ranked by, from their scores and the log-probability of their tokens."""
        raise NotImplementedError

    def pruned(self, problem: Problem, state: State, origin: Tensor, brood: Brood, scores: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Which child each place (G · places,) goes to, −1 where nothing changes; and which of these are empty: copies of their beam's first."""
        raise NotImplementedError
