"""The analyses behind the papers' figures, on the mixture of the plane: a run takes seconds, and its target is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ...methods.smc import EVERY_FIFTH
from ...resample import schemes
from ..preset import Figure, Preset, tasks
from .published import published

#: At the published λ = 1 hardly a lineage survives on the mixture, whichever way it is resampled: differences between methods show below.
_LAM = 0.25
#: As many selections for all, and every one of them made: what is compared is how, not when.
_OWN = {"fkd": {"schedule": EVERY_FIFTH, "ess_threshold": None}}
_METHODS = {name: (_LAM, {**settings, **_OWN.get(name, {})}) for name, (_, settings) in published((0.2, 0.4, 0.6, 0.8)).items()}
_ANALYSIS = partial(
    Preset, model="mixture", reward="modes", prompts=None, papers=("arXiv 2604.06779",), particles=40, steps=100, lam=_LAM, methods=_METHODS,
    groups=8, features="points", reference=16384, bandwidth=1.0, radius=0.9,
)  # fmt: skip
_MMD = "MMD of the weighted particles to the target: lower is better."
_LINEAGES = Figure(
    "Lineages along the run", "lineages by step", note="Initial particles with a descendant after each selection.", y_label="lineages"
)


@tasks.add(
    "offspring", "how resampling schemes differ, at the same masses and over whole runs", cost="8 × 16000 network rows per seed and scheme"
)
def _offspring() -> Preset:
    at = "Every scheme draws from the same masses, those of all runs in turn"
    return _ANALYSIS(
        line_up=tuple(f"vasr(resampling={scheme})" for scheme in schemes if scheme != "argmax"), nfe=(16000,), probes=("schemes",),
        trace=("offspring variance", "killed", "lineages by step"),
        figures=(
            Figure("Offspring variance at the same masses", "offspring variance/", note=f"{at}: mean variance of a number of children.", y_label="children²", log="y"),
            Figure("Parents at the same masses", "parents, share of K/", note=f"{at}: share of the particles that have children.", y_label="share of K"),
            _LINEAGES,
        ),
    )  # fmt: skip


def _temperatures(task: partial[Preset], lam: float) -> Preset:
    taus = [lam * times for times in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)]
    x, level = "temperature τ of the masses", "The level line is FK steering with multinomial resampling at the same steps."
    of = partial(Figure, x="temperature", x_label=x)
    found = task(lam=lam, line_up=("fkd", *(f"vasr(temperature={tau:g})" for tau in taus)), trace=("offspring variance", "killed"))
    quality = (
        [of("MMD against temperature", "mmd", note=f"{_MMD} {level}", y_label="MMD")]
        if found.features == "points"
        else [of("Fréchet distance against temperature", "frechet", note=f"Of all groups together, weighted: lower is better. {level}")]
    )
    lines = [
        of(
            "Lineages against temperature",
            "lineages",
            note=f"Initial particles with a descendant in the answer. {level}",
            y_label="lineages",
        ),
        of("Effective sample size against temperature", "ess", note=f"Of the final weights. {level}", y_label="ESS"),
    ]
    return replace(found, figures=(*quality, *lines))


@tasks.add(
    "temperature",
    "how sharply VASR should select: its temperature, beside FK steering",
    cost="8 × 4000 network rows per seed and temperature",
)
def _temperature() -> Preset:
    return _temperatures(partial(_ANALYSIS, nfe=(4000,)), _LAM)


@tasks.add(
    "temperature-digits",
    "the same on handwritten digits",
    cost="4 × 1000 network rows per seed and temperature, and 100 000 for the reference",
)
def _temperature_digits() -> Preset:
    digits = {"model": "digits", "reward": "digit:7", "particles": 20, "steps": 50, "nfe": (1000,), "groups": 4}
    strong = {name: (1.0, settings) for name, (_, settings) in _METHODS.items()}
    return _temperatures(
        partial(_ANALYSIS, **digits, methods=strong, features="digits-judge", reference=2048, bandwidth=None, radius=None), 1.0
    )


@tasks.add(
    "ordering",
    "the order in which resampling meets the particles: variance of the resampled mean",
    cost="4 × 4000 network rows per seed and method, and seventy times as many for the probe",
)
def _ordering() -> Preset:
    line_up = tuple(f"vasr(resampling={scheme},order={order})" for scheme in ("systematic", "ssp") for order in ("score", "ratio", "none"))
    note = "Variance that resampling adds to a mean, over the variance of what becomes of the particles afterwards, at the same masses."
    return _ANALYSIS(
        line_up=line_up, nfe=(4000,), groups=4, probes=("orders",), trace=("offspring variance", "lineages by step"),
        figures=(Figure("Variance of the resampled mean", "V_res over V_cont/", note=note, y_label="V_res / V_cont"), _LINEAGES),
    )  # fmt: skip


@tasks.add(
    "allocation",
    "to whom the masses go: by weight, by weight and reward, standardised, all to the best",
    cost="4 × 4000 network rows per seed and method, and seventy times as many for the probe",
)
def _allocation() -> Preset:
    note = "Continuation variance with what rollouts say of every particle, over that of VASR's masses: below 0 is better than VASR."
    line_up = (
        "importance", "vasr", "vasr(masses=weights)", "vasr(temperature=0)", "vasr(temperature=0.125)", "vasr(standardize=True)",
        "vasr(carry_potential=True)", "vasr-max",
    )  # fmt: skip
    return _ANALYSIS(
        line_up=line_up, nfe=(4000,), groups=4, probes=("allocations",), trace=("v_cont", "killed", "lineages by step"),
        figures=(
            Figure("Continuation variance of several masses", "log₁₀ V_cont over VASR's/", note=note, y_label="log₁₀ V_cont over VASR's"),
            _LINEAGES,
        ),
    )  # fmt: skip


@tasks.add(
    "spread",
    "how far the final rewards of one particle scatter, and whether that depends on its rank",
    cost="4 × 4000 network rows per seed, and seventy times as many for the probe",
)
def _spread() -> Preset:
    note = "Of the rewards of finished samples, by stochastic rollouts of every particle at each scoring step."
    return _ANALYSIS(
        line_up=("vasr",), nfe=(4000,), groups=4, probes=("spread",),
        figures=(
            Figure("Variance of the final reward", "variance of the final reward/", note=note, y_label="variance"),
            Figure(
                "Does the variance within a particle depend on its rank?", "variance within a particle/",
                note="Correlation 0, equal halves and the deviation of equal normal laws are what a constant variance would have.",
            ),
        ),
    )  # fmt: skip


@tasks.add("killed", "whom selection kills: the reward rank of those without children", cost="8 × 16000 network rows per seed and method")
def _killed() -> Preset:
    note = "Mean rank by reward of those without children: 0 the worst of all, ½ a blind choice, as at τ = 0."
    return _ANALYSIS(
        line_up=("fvd", "fkd", "vasr", "vasr(resampling=multinomial)", "vasr(temperature=0,resampling=multinomial)"), nfe=(16000,),
        probes=("ranks",), trace=("killed", "killed rank", "offspring variance", "lineages by step"),
        figures=(
            Figure("Whom selection kills", "killed rank", note=note, y_label="rank"),
            Figure("How many it kills", "killed", note="Share of the particles without children.", y_label="share of K"),
            _LINEAGES,
        ),
    )  # fmt: skip


#: Survivors go on without noise, so the reference is the deterministic chain's: what is left is the bias of the practice.
_STILL = {**_METHODS, "base": (_LAM, {"eta": 0.0}), "importance": (_LAM, {"eta": 0.0})}


@tasks.add(
    "fvd-theory",
    "FVD as it is used against its theory: rebirth, cap and controller, from few particles to many",
    cost="4 × 272800 network rows per seed and setting",
)
def _fvd_theory() -> Preset:
    line_up = (
        "importance", "fvd", "fvd(eta_rebirth=0)", "fvd(eta_rebirth=0.5)", "fvd(eta_rebirth=0,cap=0.25)", "fvd(eta_rebirth=0,cap=1)",
        "fvd(eta_rebirth=0,cap=1,alpha_star=0.2)", "fvd(eta_rebirth=0,cap=1,alpha_star=0.2,controller=bisection)",
    )  # fmt: skip
    of = partial(Figure, x="particles", x_label="particles")
    return _ANALYSIS(
        methods=_STILL, line_up=line_up, steps=50, nfe=(800, 3200, 12800, 51200, 204800), groups=4, trace=("killed",),
        figures=(
            of("Distance against particles", "mmd", note=f"{_MMD} What does not fall with K is bias.", y_label="MMD", log="xy"),
            of("Error of log Z against particles", "log z error", note="To that of all base draws of the deterministic chain.", y_label="error", log="xy"),
            of("Lineages against particles", "lineages", note="Initial particles with a descendant in the answer.", y_label="lineages", log="xy"),
        ),
    )  # fmt: skip
