"""The front door: names become objects, one method runs, a Population comes back."""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from tqdm.auto import tqdm

from . import lineage as genealogy
from . import weights
from .calibrate import Strength
from .checkpoint import Checkpoint
from .kernel import Gaussian
from .methods import make
from .model import Grid, Model
from .models import as_model
from .particles import State
from .population import Population
from .problem import Cost, Evaluate, Problem, SteeringWarning
from .record import describe, fingerprint, plain, versions
from .reward import asks_for, name_of
from .rewards import as_reward
from .rng import Rng
from .tree import Tree


def sample(
    model: Model | Any,
    reward: Callable | str,
    method: Any = "vasr",
    *,
    particles: int = 64,
    groups: int | Sequence[int] | None = None,
    steps: int = 50,
    lam: float | Strength = 1.0,
    seed: int = 0,
    budget: int | None = None,
    batch_size: int | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Population:
    """Draw a population from π(x₀) ∝ p(x₀) · exp(λ r(x₀)), p being the frozen model.

    model       a Model, a diffusers pipeline that needs no prompt (others: viot.from_pipeline(pipe, prompt=…)), or a name ("digits",
                "org/checkpoint")
    reward      callable(samples) -> (n,), a Reward, or a name ("digit:7", "jpeg")
    method      a Method instance or its name
    particles   K, particles per group: together with `steps` the budget of K·T network rows per group. Where `budget` is given, or a particle
                costs more than T rows, K is what the budget affords
    groups      independent populations, never cross-resampled: a count, or indices such as range(4, 8); None = one per prompt of the
                model, else 1. Group g follows prompt g mod P
    steps       T, network calls per particle
    lam         λ of the target; or viot.ess(.3), viot.kl(2.0), solved by a pilot run of the same size and recorded
    budget      network rows per group that no method exceeds; None = K·T
    batch_size  rows per network call, decode and reward; None = all. Changes memory, never the draws
    checkpoint  folder: the run can be interrupted and resumed from there, if its configuration is the same
    progress    None = a bar on a terminal
    """
    if checkpoint is not None and isinstance(lam, Strength):
        lam = Checkpoint.recall(Path(checkpoint), lam)
    run = prepare(
        model, reward, method, particles=particles, groups=groups, steps=steps, lam=lam, seed=seed, budget=budget, batch_size=batch_size
    )
    return run.finish(checkpoint=checkpoint, progress=progress)


@dataclass(frozen=True)
class Run:
    """A run that has been prepared and can be walked through: `for state in run.states()`, look, stop, save, go on, `population(state)`."""

    problem: Problem
    method: Any
    config: dict[str, Any]

    def states(self, state: State | None = None) -> Iterator[State]:
        """The states of the run, from its beginning or from a state of it; the last one is `done`."""
        device = self.problem.evaluate.model.device
        if state is not None and state.x.device.type != device.type:
            raise ValueError(
                f"this state lies on {state.x.device}, the model on {device}; read it with State.load(path, device=model.device)"
            )
        cost = self.problem.evaluate.cost
        for name, value in (Cost().record() if state is None else state.cost).items():
            setattr(cost, name, value)
        if state is not None and state.done:
            # Nothing follows the end; the terminal correction must not be applied twice.
            yield state
            return
        before, tick = cost.total_seconds, time.perf_counter()
        try:
            for reached in self.method.run(self.problem, state):
                # Time that the caller spends between the states is not the run's.
                before += time.perf_counter() - tick
                yield reached.but(cost={**reached.cost, "total_seconds": before})
                tick = time.perf_counter()
        finally:
            # What a model holds on the accelerator while it runs, it may let go of now, however the run ended.
            beside = getattr(getattr(self.method, "guiding", None), "other", None)
            for model in (self.problem.evaluate.model, beside):
                getattr(model, "release", lambda: None)()

    def population(self, state: State) -> Population:
        """The answer, from the run's final state; of a tree method from any state that it has yielded since its first finished samples."""
        settle = getattr(self.method, "settle", None)
        if not state.done and settle is not None:
            # A look in passing: counted from what had been spent by then, and not a part of the run.
            cost = self.problem.evaluate.cost
            now = cost.record()
            vars(cost).update(state.cost)
            try:
                state = settle(self.problem, state)
            finally:
                vars(cost).update(now)
        return Population.from_state(state, self.method, self.config, getattr(self.problem.evaluate.model, "pieces", None))

    def progress(self, state: State) -> int:
        """How far a state is, in steps of T."""
        told = getattr(self.method, "progress", None)
        return state.step if told is None else told(self.problem, state)

    def finish(self, checkpoint: str | Path | None = None, progress: bool | None = None) -> Population:
        """Run to the end, with a bar and from and to a checkpoint folder."""
        saved = Checkpoint(Path(checkpoint), self.config) if checkpoint is not None else None
        state = saved.load(self.problem.evaluate.model.device) if saved else None
        if isinstance(state, Population):
            return state
        done = self.progress(state) if state is not None else 0
        bar = tqdm(
            total=self.problem.T, initial=done, disable=None if progress is None else not progress, desc=self.config["method"]["name"]
        )
        reached: State | None = None
        try:
            for reached in self.states(state):
                if not reached.done:
                    if not bar.disable:
                        bar.set_postfix(_glance(reached), refresh=False)
                    bar.update(self.progress(reached) - bar.n)
                    if saved:
                        saved.keep(reached)
        finally:
            bar.close()
            # Interrupted or broken, the newest state must not be lost.
            if saved:
                saved.flush()
        if reached is None or not reached.done:
            raise RuntimeError(f"{self.config['method']['name']} ended without a state that is `done`; the last state of run() must be")
        population = self.population(reached)
        _advise(population)
        if saved:
            saved.finish(population)
        return population


def prepare(
    model: Model | Any,
    reward: Callable | str,
    method: Any = "vasr",
    *,
    particles: int = 64,
    groups: int | Sequence[int] | None = None,
    steps: int = 50,
    lam: float | Strength = 1.0,
    seed: int = 0,
    budget: int | None = None,
    batch_size: int | None = None,
) -> Run:
    """What `sample` does before the first network call: check everything, resolve names, solve λ. See `sample` for the arguments."""
    method = make(method)
    particles, steps = _whole("particles", particles), _whole("steps", steps)
    batch_size = None if batch_size is None else _whole("batch_size", batch_size)
    budget = None if budget is None else _whole("budget", budget)
    if not isinstance(lam, Strength) and (isinstance(lam, (bool, str)) or not isinstance(lam, SupportsFloat) or not math.isfinite(lam)):
        raise ValueError(f"lam must be a finite number, viot.ess(share) or viot.kl(nats), not {lam!r}")
    lam = lam if isinstance(lam, Strength) else float(lam)
    seed = _whole("seed", seed, least=None)
    given_model, given_reward = model, reward
    reward = as_reward(reward)
    wants = asks_for(reward)
    model = as_model(model)
    if "prompts" in wants and not getattr(model, "prompts", None):
        raise ValueError(f"the reward {name_of(reward)} asks for prompts, and the model {type(model).__name__} has none")
    if "prompts" in wants and callable(check := getattr(reward, "check", None)):
        check(getattr(model, "prompts", ()))
    if model.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"{type(model).__name__}.dtype is that of the chain's states and must be float32 or float64 (or integer, for tokens), not "
            f"{model.dtype}; a network in half precision casts inside predict"
        )
    indices = _groups(groups, model)
    budget = particles * steps if budget is None else budget
    cost = method.cost(steps)
    k = budget // cost
    if k < (least := getattr(method, "least", 1)):
        few = "one particle" if least == 1 else f"{least} particles, the fewest"
        raise ValueError(
            f"the budget of {budget} network rows per group is too small: {few} of {name_of_method(method)} cost{'s' * (least == 1)} "
            f"{least * cost} rows at T = {steps}. Use particles ≥ {math.ceil(least * cost / steps)} or budget ≥ {least * cost}."
        )
    grid = model.grid(steps)
    if not isinstance(grid, Grid) or len(grid) != steps:
        got = f"{len(grid)} steps" if isinstance(grid, Grid) else type(grid).__name__
        raise ValueError(f"{type(model).__name__}.grid({steps}) must return a viot.Grid of {steps} steps, not {got}")
    kernel = getattr(model, "kernel", None) or Gaussian()
    config = {
        "model": describe(given_model, model),
        **({} if kernel == Gaussian() else {"kernel": plain(kernel)}),
        "reward": given_reward if isinstance(given_reward, str) else name_of(reward),
        "method": {"name": name_of_method(method), **plain(getattr(method, "settings", dict)())},
        "particles": k,
        "groups": list(indices),
        "steps": steps,
        "lam": lam,
        "seed": seed,
        "budget": budget,
        "batch_size": batch_size,
        "versions": versions(),
    }
    # What was given as an object cannot be rebuilt from its name, which may be that of something else here.
    if own := {
        what: fingerprint(given) for what, given in (("model", given_model), ("reward", given_reward)) if not isinstance(given, str)
    }:
        config["own"] = own
    if isinstance(lam, Strength) and lam.found:
        config |= lam.found
    elif isinstance(lam, Strength):
        # Another seed than the run's own: the pilot must not choose λ by the very particles that it is then applied to.
        pilot = prepare(model, reward, "base", particles=k, groups=indices, steps=steps, lam=0.0, seed=~seed, batch_size=batch_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SteeringWarning)
            found = pilot.finish()
        config |= {"lam": lam.solve(found.rewards), "lam_pilot": {"wish": str(lam), "nfe": found.nfe, "reward_rows": found.reward_rows}}
    rng = Rng(seed)
    evaluate = Evaluate(model, reward, kernel, rng, batch_size)
    problem = Problem(evaluate, grid, kernel, indices, k, float(config["lam"]), rng, budget)
    if callable(check := getattr(method, "check", None)):
        check(problem)
    return Run(problem, method, config)


def name_of_method(method: Any) -> str:
    return getattr(method, "name", type(method).__name__)


def _groups(groups: int | Sequence[int] | None, model: Model) -> tuple[int, ...]:
    if groups is None:
        # A model may have several conditions without having words for them: embeddings, pictures, classes.
        groups = getattr(model, "groups", None) or len(getattr(model, "prompts", None) or ()) or 1
    if not isinstance(groups, Iterable):
        return tuple(range(_whole("groups", groups)))
    indices = () if isinstance(groups, str) else tuple(_whole("a group's index", g, least=0) for g in groups)
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f"groups must be a count or distinct indices ≥ 0, not {groups!r}")
    return indices


def _whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number, numpy's included, or an error that names it."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        raise ValueError(f"{name} must be a whole number{'' if least is None else f' ≥ {least}'}, not {value!r}")
    return number


def _glance(state: State) -> dict[str, str]:
    """What the bar shows beside the steps and the time left."""
    if Tree.grows(state):
        shown = {"nodes": f"{len(state.group['tree.value'])}"}
    else:
        lineages = genealogy.distinct(state.roots).double().mean()
        shown = {"ESS": f"{weights.ess(state.log_w).mean():.0f}", "lineages": f"{lineages:.0f}"}
    if not state.rewards.isnan().all():
        shown["best"] = f"{state.rewards.nan_to_num(nan=-math.inf).max():.2f}"
    return shown


def _advise(population: Population) -> None:
    """Say, once, when the answer deserves a second look, with a λ to try."""
    from .report.verdict import dead_groups, strength_advice

    for advice in (dead_groups(population), strength_advice(population)):
        if advice:
            warnings.warn(advice, SteeringWarning, stacklevel=4)
