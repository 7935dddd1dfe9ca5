"""May one believe the answer? Plain sentences from ESS, the spread of log Z over groups, surviving lineages, deaths and faults."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from .. import weights
from .search import Findings, findings
from .words import count, listed, method_name, number, percent, plural

if TYPE_CHECKING:
    from ..population import Population

Level = Literal["believe", "caution", "doubt"]

#: Below this share of K, or this many particles, the weights are lopsided enough to say so; below two no average is left.
LOW_SHARE, LOW_ESS = 0.1, 10
#: Standard deviations of log Z over groups: e^0.5 ≈ 1.6 and e^1 ≈ 2.7 are the factors by which estimates of Z typically differ.
SPREAD_CAUTION, SPREAD_DOUBT = 0.5, 1.0
#: The way out of a tree that draws too few samples.
_GROW = "Use more particles, which let the tree grow, or a smaller lam."


@dataclass(frozen=True)
class Verdict:
    """How far to trust a population: a level, one sentence, and what it rests on."""

    level: Level
    headline: str
    reasons: list[str] = field(default_factory=list)


# -- what sampling warns of -----------------------------------------------------------------------------------------------------------


def dead_groups(population: Population) -> str | None:
    """Which groups died, if any."""
    dead = [population.indices[i] for i in population.dead_groups]
    if not dead:
        return None
    names = ", ".join(map(str, dead[:8])) + (" …" if len(dead) > 8 else "")
    return (
        f"group{'s' * (len(dead) > 1)} {names} died: every particle's reward was −inf, NaN or +inf. They are returned frozen, with NaN "
        f"weights. Use more particles, or a reward that is finite where samples are still rough."
    )


def lam_for_ess(population: Population, share: float = 0.3) -> float | None:
    """The λ at which reweighting this population would keep an ESS of `share` · K: a λ to try when the one used was too strong."""
    lam = float(population.config.get("lam") or 0.0)
    living = ~population.log_weights.isnan().any(-1)
    if lam == 0 or not living.any():
        return None
    log_w, r = population.log_weights[living], population.rewards[living]
    # A dead particle has weight 0 at every λ; its reward of −inf must not meet a factor.
    r = torch.where(r.isfinite(), r, 0.0)
    factors = torch.logspace(-4, 0, 301, dtype=torch.float64)[:-1]
    enough = [f for f in factors.tolist() if weights.ess(log_w + (f - 1) * lam * r).mean() >= share * log_w.shape[1]]
    return lam * enough[-1] if enough else None


def strength_advice(population: Population) -> str | None:
    """λ too strong for these particles (ESS < 2), or too weak to be felt (λ · std(r) < 0.1), with one to try.

    Only for weighted draws: of a maximiser's candidates the weights say nothing.
    """
    lam, k = float(population.config.get("lam") or 0.0), population.shape[1]
    rewards = population.rewards[population.rewards.isfinite()]
    if not population.exact or k < 3 or lam == 0 or len(rewards) < 3:
        return None
    if population.tree is not None:
        return _tree_advice(population, lam)
    few = (population.ess > 0) & (population.ess < 2)
    # Among very many groups an unlucky one is no news.
    if few.double().mean() > 0.02:
        where = "" if len(few) == 1 else f" in {int(few.sum())} of {len(few)} groups"
        return f"fewer than 2 effective particles of {k} are left{where}: the weights rest on a single sample. {_milder(population)}"
    spread = rewards.std().item()
    if abs(lam) * spread < 0.1 and not _moved(population):
        return f"λ · std(reward) = {abs(lam) * spread:.2g}: steering this weak is hardly felt.{_stronger(spread)}"
    return None


def _tree_advice(population: Population, lam: float) -> str | None:
    """The same for draws from a tree, whose weights are equal whatever they are worth."""
    tree = population.tree
    assert tree is not None
    seen = findings(population)
    few = (seen.effective > 0) & (seen.effective < 2)
    if few.double().mean() > 0.02 and int(seen.found.max()) > 2:
        where = "" if len(few) == 1 else f" in {int(few.sum())} of {len(few)} groups"
        return f"fewer than 2 effective leaves of {count(seen.found.double().mean())} are left{where}: the draws repeat a single sample. {_GROW}"
    rewards = tree.value[tree.leaves]
    spread = float(rewards[rewards.isfinite()].std(correction=0))
    # The value of a root is log Z / λ.
    kl = lam * (population.mean() - tree.value[: tree.groups])
    if abs(lam) * spread < 0.1 and not bool((kl > 0.1).any()):
        return f"λ · std(reward) = {abs(lam) * spread:.2g}: steering this weak is hardly felt.{_stronger(spread)}"
    return None


def _stronger(spread: float) -> str:
    return f" lam={1 / spread:.3g} makes one standard deviation of reward count e-fold." if spread > 0 else " All rewards are equal."


def _moved(population: Population) -> bool:
    """Has the steering gone somewhere, although the rewards now lie close together (a reward that saturates)?

    KL(π ‖ p) = λ E_π[r] − log Z, estimated from the population: nearly 0 where nothing was felt.
    """
    kl = float(population.config["lam"]) * population.mean() - population.log_z
    return bool((kl > 0.1).any())


def _milder(population: Population) -> str:
    """The way out of weights that are too uneven."""
    milder = lam_for_ess(population)
    # Importance weights of an unsteered run have a better way out.
    other = "" if len(population.ancestors) else ", or a method that selects on the way, such as vasr"
    if milder is None:
        return f"Use a smaller lam, or more particles{other}."
    return f"lam={milder:.2g} would keep about 30 % of them; or use more particles{other}."


def _closer(population: Population, spread: float) -> str:
    """The way to groups that agree: the spread of log Z falls with √K, and grows about in proportion to λ."""
    times, lam = math.ceil((spread / SPREAD_CAUTION) ** 2), float(population.config.get("lam") or 0.0)
    milder = f", or lam={lam * SPREAD_CAUTION / spread:.2g}" if lam else ""
    return f"About {max(2, times)} times the particles would bring the groups together{milder}."


# -- the verdict ----------------------------------------------------------------------------------------------------------------------


def verdict(population: Population) -> Verdict:
    """Believe the answer, look twice, or doubt it: from the final ESS, the agreement of groups, lineages, deaths and faults."""
    g, k = population.shape
    trouble = _losses(population)
    dead = len(population.dead_groups)
    if dead == g:
        return Verdict("doubt", "Nothing to believe: every particle died.", trouble)
    if not population.exact:
        reasons = _searched(population) + trouble
        return Verdict("caution" if trouble else "believe", _candidates(population), reasons)
    if population.tree is not None:
        return _of_tree(population, trouble)
    living = population.ess[population.ess > 0]
    ess, worst = living.mean().item(), living.min().item()
    spread, agreement = _agreement(population)
    inherited, lineages = _inheritance(population)
    reasons = [_effective(ess, worst, k, g) + _accuracy(population), *([agreement] if agreement else []), *lineages, *trouble]
    if worst < 2 and k > 2:
        what = f"the answer rests on about {plural(max(1, round(worst)), 'particle')} of {k}" + (" in one group" if g > 1 else "")
        return Verdict("doubt", f"Doubt it: {what}.", [*reasons, _milder(population)])
    if _collapsed(population):
        what = "a selection found one particle that outweighed all others, and everything after descends from it"
        return Verdict("doubt", f"Doubt it: {what}.", [*reasons, _milder(population)])
    if spread > SPREAD_DOUBT:
        return Verdict("doubt", "Doubt it: the groups disagree on how much mass there is to find.", [*reasons, _closer(population, spread)])
    low, apart = worst < max(LOW_SHARE * k, min(LOW_ESS, k / 2)), spread > SPREAD_CAUTION
    if low or apart or inherited or trouble:
        why = ["the weights are uneven"] * low + ["the groups differ"] * apart + ["few lineages are left"] * inherited
        why += ["some particles were lost"] * bool(trouble)
        more = ["More particles would keep more lineages."] if inherited else []
        advice = [_milder(population)] if low else [_closer(population, spread)] if apart else more
        return Verdict("caution", f"Usable with care: {listed(why)}.", [*reasons, *advice])
    advice = strength_advice(population)
    if advice:
        return Verdict("believe", "Believe it, but it is hardly steered.", [*reasons, advice])
    agrees = f", and the {g} groups agree" if agreement and g > 1 else ""
    return Verdict("believe", f"Believe it: about {round(ess)} effective particles of {count(k)}{agrees}.", reasons)


def _collapsed(population: Population) -> bool:
    """Did a selection leave one lineage because one weight was as heavy as all others together? Equal weights afterwards hide it."""
    if population.shape[1] < 8 or "ess" not in population.trace or not len(population.trace["ess"]):
        return False
    return bool(((population.trace["ess"].amin(0) < 1.2) & (population.surviving_lineages == 1)).any())


def _candidates(population: Population) -> str:
    name = method_name(population.config)
    if name == "base":
        return "Plain draws of the model: equally weighted, not steered."
    return f"Candidates, not draws: {name} looks for high reward and does not sample the tilted law, so the ESS says nothing here."


def _of_tree(population: Population, trouble: list[str]) -> Verdict:
    """Draws from a search tree are equally weighted by construction: what counts is over how many of its leaves they spread."""
    g, k = population.shape
    seen = findings(population)
    alive = seen.effective > 0
    if not bool(alive.any()):
        return Verdict("doubt", "Nothing to believe: no finished sample is possible.", trouble)
    effective, worst = seen.effective[alive].mean().item(), seen.effective[alive].min().item()
    found = count(seen.found.double().mean())
    shared = bool((seen.noises[alive] == 1).any()) and k >= 8
    reasons = [_spread(seen, alive, k), _noises(seen, alive, k)]
    if worst < 2 and k > 2:
        what = f"the draws rest on about {plural(max(1, round(worst)), 'finished sample')} of {found}" + (" in one group" if g > 1 else "")
        return Verdict("doubt", f"Doubt it: {what}.", [*reasons, *trouble, _GROW])
    reasons[0] += _accuracy(population)
    low = worst < max(LOW_SHARE * k, min(LOW_ESS, k / 2))
    if low or shared or trouble:
        why = (
            ["the draws share few samples"] * low + ["they share one draw of noise"] * shared + ["some particles were lost"] * bool(trouble)
        )
        return Verdict("caution", f"Usable with care: {listed(why)}.", [*reasons, *trouble, *[_GROW] * (low or shared)])
    advice = strength_advice(population)
    if advice:
        return Verdict("believe", "Believe it, but it is hardly steered.", [*reasons, advice])
    return Verdict("believe", f"Believe it: about {count(round(effective))} effective leaves of {found} found.", reasons)


def _spread(seen: Findings, alive: torch.Tensor, k: int) -> str:
    """Effective leaves and distinct samples, in a sentence."""
    several = len(seen.found) > 1
    mean, least = seen.effective[alive].mean(), seen.effective[alive].min()
    text = f"{number(mean)} effective leaves (1 / Σ p² by the tree's law) of {count(seen.found.double().mean())} finished samples found"
    text += f", {number(least)} in the worst group" if several else ""
    distinct = seen.distinct[alive].double()
    text += f"; {number(distinct.mean())} of the {count(k)} draws differ" + (", on average" if several else "")
    return f"{text}. They are equally weighted whatever they are worth: draws of a tree tend to the tilted law as it grows."


def _noises(seen: Findings, alive: torch.Tensor, k: int) -> str:
    some = " in the worst group" if len(seen.found) > 1 else ""
    i = int(torch.where(alive, seen.noises, k + 1).argmin())
    one = int(seen.noises[i]) == 1
    return f"The draws descend from {count(seen.noises[i])} of {plural(int(seen.tried[i]), 'draw')} of noise{some}{': they share their coarse structure' if one else ''}."


def _searched(population: Population) -> list[str]:
    """What the candidates were chosen from, where a tree tells."""
    if population.tree is None:
        return []
    seen, k = findings(population), population.shape[1]
    each = " per group, on average" if len(seen.found) > 1 else ""
    return [
        f"{number(seen.distinct.double().mean())} distinct samples of {count(k)}, from {count(seen.found.double().mean())} finished ones found{each}."
    ]


def _effective(ess: float, worst: float, k: int, g: int) -> str:
    least = f", {number(worst)} in the worst group" if g > 1 else ""
    return f"ESS {number(ess)} of {count(k)} ({percent(ess / k)}){least}."


def standard_error(population: Population) -> float:
    """Of the mean over groups of the weighted mean reward; NaN where a single lineage is left and nothing can be compared.

    Particles of one lineage are not independent, so each group is cut by root: Σ_b (Σ_{i in b} W_i (r_i − r̄))², the genealogical estimate
    of Chan and Lai (2013) for particle methods; without selections it is the usual one of importance sampling. Groups of the same prompt
    that differ by more than that are believed instead.
    """
    alive = population.ess > 0
    held = torch.zeros(population.shape[0], int(population.roots.max()) + 1, dtype=torch.float64)
    weighed = held.scatter_add(-1, population.roots, population.weights.double()) > 0
    if not alive.any() or (weighed[alive].sum(-1) < 2).any():
        return math.nan
    w, mean, n = population.weights.double(), population.mean(), int(alive.sum())
    deviation = torch.where(w > 0, w * (population.rewards - mean[:, None]), 0.0)
    variance = held.scatter_add(-1, population.roots, deviation)[alive].square().sum(-1).mean()
    if n > 1 and not population.prompts:
        variance = torch.maximum(variance, mean[alive].var())
    return float((variance / n).sqrt())


def _accuracy(population: Population) -> str:
    error = standard_error(population)
    if math.isnan(error) or error == 0:
        return ""
    mean = number(population.mean()[population.ess > 0].mean())
    kin = "draws of noise" if population.tree is not None else "lineages" if len(population.ancestors) else "particles"
    what = kin if population.shape[0] == 1 else f"groups and {'lineages' if kin == 'particles' else kin}"
    return f" The mean reward, {mean}, is known to about ±\u00a0{number(error, 2)}, judged by how the {what} differ."


def _agreement(population: Population) -> tuple[float, str | None]:
    """The standard deviation of log Z over the groups that share a prompt, and what it means."""
    g = population.shape[0]
    prompts = population.prompts
    same: dict[str, list[float]] = {}
    for i, z in enumerate(population.log_z.tolist()):
        if math.isfinite(z):
            same.setdefault(prompts[i] if prompts else "", []).append(z)
    sets = [torch.tensor(z, dtype=torch.float64) for z in same.values() if len(z) > 1]
    if not sets:
        alone = g == 1 and bool(population.log_z.isfinite().all())
        return 0.0, "One group cannot check itself: groups=4 would show how far log Z is reproducible." if alone else None
    freedom = sum(len(z) - 1 for z in sets)
    spread = math.sqrt(sum(float(((z - z.mean()) ** 2).sum()) for z in sets) / freedom)
    return spread, (
        f"log Z differs by {number(spread, 2)} (standard deviation over {plural(freedom + len(sets), 'independent group')}): one group's estimate "
        f"of Z is off by a factor of about {number(math.exp(spread), 2)}."
    )


def _inheritance(population: Population) -> tuple[bool, list[str]]:
    """Are there so few ancestors left that the particles' coarse structure was decided by one of them?"""
    k = population.shape[1]
    # Without a selection every particle is its own lineage.
    if not len(population.ancestors):
        return False, []
    least = int(population.surviving_lineages.min())
    some = " in the worst group" if population.shape[0] > 1 else ""
    text = f"{plural(least, 'lineage')} of {count(population.ancestors.shape[-1])} {'is' if least == 1 else 'are'} left{some}"
    if least == 1 and k >= 8:
        return True, [f"{text}: all particles share one ancestor, and differ only by the noise added since."]
    return False, [f"{text}."]


def _losses(population: Population) -> list[str]:
    """Groups and particles that died, and faulty rewards."""
    found = []
    if advice := dead_groups(population):
        found.append(advice[0].upper() + advice[1:])
    living = ~population.log_weights.isnan().all(-1)
    died = int((population.rewards[living] == -math.inf).sum())
    if died:
        found.append(f"{plural(died, 'particle')} of the answer {'has' if died == 1 else 'have'} a reward of −∞ and weight 0.")
    if population.faults:
        found.append(f"The reward returned NaN or +inf {plural(population.faults, 'time')}; those particles counted as dead.")
    return found
