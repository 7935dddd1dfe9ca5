r"""What is asked of a selection beside what every run records of it: numbers (G,) from the weights, rewards and states that it sees.

A probe is a function (problem, before, log_m, ancestors) -> {name: (G,)}: the state before the selection, its log-masses (G, K) and its
ancestors (G, K). A name `family/member` stands in a figure and a table with the other members. Probes change no draw, and their rows are
counted as nobody's; the seconds of a run hold their time too.

The variance of one selection splits in two (arXiv 2604.06779 v2, section 4). With weights w, masses m, and the mean μ_i and standard deviation
s_i of exp(λ r(x_0)) where particle i goes on,

    V_cont = (1/K) Σ w_i² s_i² / m_i          V_res = Var Σ N_i w_i μ_i / (K m_i)

Here μ and s are measured, by `ROLLOUTS` rollouts of every particle to the end of its chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from .. import resample, weights
from ..methods.smc import SMC
from ..particles import State
from ..problem import Problem
from ..registry import Registry
from ..sample import Run
from ..value import Rollout

Probe = Callable[[Problem, State, Tensor, Tensor], dict[str, Tensor]]

probes = Registry("probe")

#: Rollouts per particle, draws of a scheme for its variances, and draws for the variance of a sum.
ROLLOUTS, DRAWS, SUMS = 16, 64, 256
#: The schemes that draw.
SCHEMES = tuple(name for name in resample.schemes if name != "argmax")


def probed(run: Run, names: Sequence[str]) -> Run:
    """The same run, whose trace holds the probes' numbers too; of a method that selects nothing, the run itself."""
    asked: list[Probe] = [probes[name].make for name in names]
    if not asked or not isinstance(run.method, SMC):
        return run
    method, plain = copy(run.method), run.method.record

    def record(problem: Problem, after: State, before: State, log_m: Tensor, ancestors: Tensor) -> State:
        found, spent, told = plain(problem, after, before, log_m, ancestors), problem.evaluate.cost.record(), {}
        for probe in asked:
            told |= probe(problem, before, log_m, ancestors)
        vars(problem.evaluate.cost).update(spent)
        last = found.history[-1]
        return found.but(history=(*found.history[:-1], replace(last, stats=last.stats | told)))

    # A method is frozen, and this copy is nobody else's.
    object.__setattr__(method, "record", record)
    return replace(run, method=method)


# -- who was killed -------------------------------------------------------------------------------------------------------------------


def mean_rank(values: Tensor, who: Tensor) -> Tensor:
    """(G,) mean rank of those in `who` (G, K) bool among `values` (G, K): 0 is the lowest, 1 the highest, ties share theirs; NaN of nobody.

    Whoever is chosen blindly has ½ on average.
    """
    k = values.shape[-1]
    ordered, index = values.sort(-1)
    place, begins = torch.arange(k).expand_as(index), torch.ones_like(index, dtype=torch.bool)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(begins, place, 0).cummax(-1).values
    # Those of one value end where the next ones begin.
    last = torch.where(begins.roll(-1, -1), place, k - 1).flip(-1).cummin(-1).values.flip(-1)
    chosen = who.gather(-1, index).double()
    return ((first + last) / 2 * chosen).sum(-1) / (chosen.sum(-1) * (k - 1))


@probes.add("ranks", "the mean rank by reward of those without children: 0 the worst die, ½ a blind choice")
def _ranks(problem: Problem, before: State, log_m: Tensor, ancestors: Tensor) -> dict[str, Tensor]:
    return {"killed_rank": mean_rank(before.rewards, resample.counts(ancestors) == 0)}


# -- the same masses, several ways to draw --------------------------------------------------------------------------------------------


def draws(problem: Problem, step: int, scheme: str, masses: Tensor, n: int) -> Tensor:
    """(G, n, K) counts of n independent draws from masses (G, K), with random numbers that the run itself does not use."""
    (g, k), of = masses.shape, resample.get(scheme)
    u = problem.draw(step, f"probe {scheme}").uniform((g * n * max(1, of.uniforms(k)),)).view(g * n, -1)
    return resample.counts(of(masses.repeat_interleave(n, 0), u)).view(g, n, k)


@probes.add("schemes", "offspring variance and parents of every resampling scheme at the masses of this run, in order of the reward")
def _schemes(problem: Problem, before: State, log_m: Tensor, ancestors: Tensor) -> dict[str, Tensor]:
    masses, k = _masses(log_m).gather(-1, before.rewards.argsort(-1, descending=True)), log_m.shape[1]
    found: dict[str, Tensor] = {}
    for scheme in SCHEMES:
        n = draws(problem, before.step, scheme, masses, DRAWS).double()
        found[f"offspring variance/{scheme}"] = n.var(1).mean(-1)
        found[f"parents, share of K/{scheme}"] = (n > 0).double().mean((1, 2))
        # Without bias it is 0 on average: the mean of the draws has the DRAWS-th part of their variance.
        found[f"squared bias/{scheme}"] = ((n.mean(1) - k * masses).square() - n.var(1) / DRAWS).mean(-1)
    return found


@probes.add("orders", "V_res of this run's masses by the order in which systematic and ssp resampling meet the particles, over V_cont")
def _orders(problem: Problem, before: State, log_m: Tensor, ancestors: Tensor) -> dict[str, Tensor]:
    masses, (w, ends) = _masses(log_m), _going_on(problem, before)
    mu, k = ends.mean(-1), masses.shape[1]
    cont = _per_mass(w.square() * ends.var(-1), masses) / k
    each = torch.where(masses > 0, w * mu / (k * masses), 0.0)
    keys = {"score": before.rewards, "ratio": w / masses, "none": None}
    found: dict[str, Tensor] = {}
    for scheme, name in [*((s, o) for s in ("systematic", "ssp") for o in keys), ("multinomial", "none")]:
        key = keys[name]
        # As VASR sorts: in decreasing order, ties as they come.
        order = torch.arange(k).expand_as(masses) if key is None else key.argsort(dim=-1, descending=True, stable=True)
        n = draws(problem, before.step, scheme, masses.gather(-1, order), SUMS).double()
        label = scheme if scheme == "multinomial" else f"{scheme}, order = {name}"
        found[f"V_res over V_cont/{label}"] = (n * each.gather(-1, order)[:, None]).sum(-1).var(-1) / cont
    return found


# -- what becomes of a particle -------------------------------------------------------------------------------------------------------


@probes.add("allocations", "V_cont of several masses at the weights of this run, over that of VASR's masses")
def _allocations(problem: Problem, before: State, log_m: Tensor, ancestors: Tensor) -> dict[str, Tensor]:
    w, ends = _going_on(problem, before)
    loss, lam, r = w.square() * ends.var(-1), problem.lam, before.rewards
    pure = weights.subtract(before.log_w, before.extra["path"])
    standard = (r - r.mean(-1, keepdim=True)) / (r.std(-1, correction=0, keepdim=True) + 1e-8)
    tilted = {
        "τ = 0 (the weights)": pure,
        "τ = λ/4": pure + lam / 4 * r,
        "τ = λ/2": pure + lam / 2 * r,
        "τ = λ (VASR)": pure + lam * r,
        "τ = 2 λ": pure + 2 * lam * r,
        "standardised": pure + standard,
    }
    v_cont = {name: _per_mass(loss, weights.normalize(log).exp()) for name, log in tilted.items()}
    return {f"log₁₀ V_cont over VASR's/{name}": (v / v_cont["τ = λ (VASR)"]).log10() for name, v in v_cont.items()}


@probes.add("spread", "variance of the final reward within a particle and between particles, and whether the first is related to rank")
def _spread(problem: Problem, before: State, log_m: Tensor, ancestors: Tensor) -> dict[str, Tensor]:
    finals = _finals(problem, before)
    within = finals.var(-1)
    # A mean of n rollouts has the n-th part of the variance within on top of its own.
    between = finals.mean(-1).var(-1) - within.mean(-1) / ROLLOUTS
    (g, k), order = within.shape, before.rewards.argsort(-1)
    halves = within.gather(-1, order)[:, : k // 2].mean(-1), within.gather(-1, order)[:, (k + 1) // 2 :].mean(-1)
    return {
        "variance of the final reward/within a particle": within.mean(-1),
        "variance of the final reward/between particles": between,
        "variance within a particle/its correlation with rank": rank_correlation(within, before.rewards),
        "variance within a particle/deviation over mean": within.std(-1) / within.mean(-1),
        # What is left where every particle has the same normal law.
        "variance within a particle/the same of equal normal laws": torch.full((g,), math.sqrt(2 / (ROLLOUTS - 1)), dtype=torch.float64),
        "variance within a particle/worse half over better half": halves[0] / halves[1],
    }


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """(G,) Spearman's correlation of a and b (G, K): that of their ranks, ties as they come; NaN of fewer than two."""
    x, y = (v.argsort(-1).argsort(-1).double() - (v.shape[-1] - 1) / 2 for v in (a, b))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def _masses(log_m: Tensor) -> Tensor:
    """(G, K) masses; equal ones in a group whose particles are all dead."""
    return torch.where(log_m.isnan(), -math.log(log_m.shape[1]), log_m).exp()


def _per_mass(loss: Tensor, masses: Tensor) -> Tensor:
    """(G,) Σ loss_i / m_i, what nobody can lose left out."""
    return torch.where(loss > 0, loss / masses, 0.0).sum(-1)


def _finals(problem: Problem, state: State) -> Tensor:
    """(G, K, ROLLOUTS) rewards of finished samples: of each particle going on alone, by the whole rest of the chain."""
    if state.prediction is None:
        raise ValueError(
            "this method selects after the step, where no prediction is at hand to roll out from; probes that roll out take one that selects "
            "before it, such as vasr"
        )
    return Rollout(ROLLOUTS, problem.T).rewards(problem, state)


def _going_on(problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """The weights (G, K) and what the tilt that is left to come may be worth, (G, K, ROLLOUTS); each over its group's largest."""
    left = weights.tilt(_finals(problem, state), problem.lam) - state.extra["path"][..., None]
    return (state.log_w - state.log_w.amax(-1, keepdim=True)).exp(), (left - left.amax((1, 2), keepdim=True)).exp()
