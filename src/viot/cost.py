"""What a run would cost: rows from the method's own schedule, seconds and memory from two small steps of the real model and reward."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .answers import Answers
from .calibrate import Strength
from .model import Model
from .problem import Cost, DeadPopulation, Problem, SteeringWarning
from .sample import Run, prepare

#: Rows of the measured steps where no batch size is given.
FEW = 16
PHASES = ("network", "decode", "reward", "moving")


@dataclass(frozen=True)
class Rows:
    """Rows over all groups, as `Population` counts them: through the network, decoded, scored, and back through the gradient."""

    network: int
    decode: int
    reward: int
    gradient: int = 0

    def __add__(self, other: Rows) -> Rows:
        return Rows(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def planned(run: Run) -> Rows:
    """The rows that a prepared run will spend, which is what it then counts: known where every particle lives through all T steps.

    A tree spends at most as many network rows, less than one chain fewer, scores at least as many samples, and decodes once more those drawn.
    A method whose rows depend on the model says them by `planned(problem)`, over all groups.
    """
    problem, method = run.problem, run.method
    if (plan := getattr(method, "planned", None)) is not None:
        return Rows(*plan(problem))
    if (spent := getattr(method, "spent", None)) is not None:
        network, decoded, scored, gradient = (problem.G * rows for rows in spent(problem.K, problem.T))
        return Rows(network, decoded, scored, gradient)
    particles = problem.G * problem.K
    scored = particles * (method.scored(problem.T) if hasattr(method, "scored") else 1)
    gradient = particles * method.grads(problem.T) if hasattr(method, "grads") else 0
    return Rows(particles * method.cost(problem.T), scored, scored, gradient)


@dataclass(frozen=True)
class Memory:
    """Bytes. `peak` was reached with `rows` rows at a time, on a CUDA device (`cuda`) or as the growth of this process; None = not known here.

    held     what the run keeps for all of its particles beside that: states, predictions, finished samples
    whole    about what the run needs with its own batches; only on CUDA can that be told from the peak
    """

    cuda: bool
    peak: int | None
    rows: int
    held: int
    whole: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What a run would cost. `rows` are those of the run itself, `extra` those counted apart from it (a pilot, unsteered draws).

    each      seconds per row of each phase: network, decode and reward of finished samples, "guess decode" and "guess reward" of the
              clean guesses on the way, gradient, through the network and back from the reward, and moving, a step of the kernel
    finished  how many of the decoded rows are finished samples, those of pilot and unsteered draws included
    first     seconds of the first measured step, which warms up
    """

    rows: Rows
    extra: dict[str, Rows]
    each: dict[str, float]
    finished: int
    first: float
    memory: Memory

    @property
    def total(self) -> Rows:
        return sum(self.extra.values(), self.rows)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and their sum as "total"."""
        rows, final = self.total, self.finished
        forward = (rows.network - rows.gradient) * self.each["network"] + rows.gradient * self.each.get("gradient", 0.0)
        found = {"network": forward, "moving": rows.network * self.each["moving"]}
        for name, n in (("decode", rows.decode), ("reward", rows.reward)):
            found[name] = final * self.each[name] + (n - final) * self.each[f"guess {name}"]
        return {**{name: found[name] for name in PHASES}, "total": sum(found.values())}


def estimate(model: Model | Any, reward: Callable | str, method: Any = "vasr", *, unsteered: int = 0, **run: Any) -> Estimate:
    """What `viot.sample` with these arguments would cost, with `unsteered` draws of the plain model per group beside it.

    Makes two network calls, each on `batch_size` rows (or a few), decodes and scores them. Draws nothing that is kept.
    """
    before = resident()
    lam = run.get("lam", 1.0)
    ready = prepare(model, reward, method, **{**run, "lam": 1.0 if isinstance(lam, Strength) else lam})
    extra = {"pilot": plain(ready, ready.problem.K)} if isinstance(lam, Strength) and not lam.found else {}
    return measure(ready, {**extra, **({"unsteered": plain(ready, unsteered)} if unsteered else {})}, before)


def plain(run: Run, draws: int) -> Rows:
    """The rows of so many draws of the plain model per group."""
    n = run.problem.G * draws
    return Rows(n * run.problem.T, n, n)


def measure(run: Run, extra: dict[str, Rows] | None = None, before: int | None = None) -> Estimate:
    """The cost of a prepared run. `before` is the resident set from before its model was loaded."""
    problem, extra = run.problem, extra or {}
    rows = planned(run)
    if rows.gradient:
        # What is wrong with a gradient, the run itself would say.
        few = replace(problem, groups=problem.groups[:1], K=1)
        run.method.prepare(few, few.start())
    probe = _Probe(problem, min(problem.evaluate.batch_size or FEW, problem.G * problem.K), rows.gradient > 0)
    with probe.watched(resident() if before is None else before):
        start = time.perf_counter()
        probe.step()
        first = time.perf_counter() - start
        each = probe.step()
    finished = problem.G * problem.K + sum(rows.decode for rows in extra.values())
    return Estimate(rows, extra, each, finished, first, probe.memory())


@dataclass
class _Probe:
    """One step of a few of a problem's particles, through the library's own door to model and reward, counted apart."""

    problem: Problem
    rows: int
    gradient: bool = False
    peak: int | None = None
    weights: int = 0
    bytes_each: int = field(default=0, init=False)

    @property
    def cuda(self) -> bool:
        return self.problem.evaluate.model.device.type == "cuda"

    def step(self) -> dict[str, float]:
        """Seconds per row of each phase of a step."""
        problem, n = self.problem, self.rows
        evaluate = replace(problem.evaluate, cost=Cost(), batch_size=None, answers=Answers())
        few = replace(problem, groups=problem.groups[: math.ceil(n / problem.K)])
        x, group = few.prior().flatten(0, 1)[:n], few.group_rows(few.K)[:n]
        with warnings.catch_warnings():
            # A clean guess of pure noise may well be scored NaN.
            warnings.simplefilter("ignore", SteeringWarning)
            prediction = evaluate(x, problem.grid.times[0], group)[0]
            guess = problem.kernel.guess(x, prediction)[:, 0]
            finished = None
            # … by every row of them, even.
            with contextlib.suppress(DeadPopulation):
                evaluate.score(guess, group, 0)
            on_the_way = replace(evaluate.cost)
            with contextlib.suppress(DeadPopulation):
                finished = evaluate.score(guess, group, keep=True).samples
            back = replace(evaluate, cost=Cost())
            if self.gradient:
                with contextlib.suppress(DeadPopulation):
                    back(x, problem.grid.times[0], group, grad=True, step=0)
        with evaluate.cost.timed("selection", x.device):
            problem.kernel.step(x, prediction, problem.grid.coeffs(0), 1.0, replace(problem, groups=problem.groups[:1]).draw(0, "propose"))
        cost = evaluate.cost
        kept = [x, x, *prediction.tensors(), *([finished, finished] if isinstance(finished, Tensor) else [])]
        self.bytes_each = sum(v.numel() * v.element_size() for v in kept) // n
        return {
            **({"gradient": back.cost.network_seconds / n} if self.gradient else {}),
            "network": cost.network_seconds / n,
            "guess decode": on_the_way.decode_seconds / n,
            "guess reward": on_the_way.reward_seconds / n,
            "decode": (cost.decode_seconds - on_the_way.decode_seconds) / n,
            "reward": (cost.reward_seconds - on_the_way.reward_seconds) / n,
            "moving": cost.selection_seconds / n,
        }

    @contextlib.contextmanager
    def watched(self, before: int | None) -> Iterator[None]:
        """Note the peak of memory inside."""
        model = self.problem.evaluate.model
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(model.device)
            self.weights = torch.cuda.memory_allocated(model.device)
        try:
            yield
        finally:
            # A pipeline whose components wait on the accelerator lets go of them.
            getattr(model, "release", lambda: None)()
        after = most_resident()
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated(model.device)
        elif after is not None and before is not None:
            self.peak = max(0, after - before)

    def memory(self) -> Memory:
        problem, every = self.problem, self.problem.G * self.problem.K
        held = self.bytes_each * every
        if not self.cuda or self.peak is None:
            return Memory(False, self.peak, self.rows, held)
        batch = min(problem.evaluate.batch_size or every, every)
        return Memory(True, self.peak, self.rows, held, self.weights + (self.peak - self.weights) * batch // self.rows + held)


# -- the process ----------------------------------------------------------------------------------------------------------------------


def resident() -> int | None:
    """Bytes of this process that lie in memory now; the most there ever were where the system does not tell, None where it tells nothing."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return most_resident()


def most_resident() -> int | None:
    """The most bytes of this process that ever lay in memory."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
