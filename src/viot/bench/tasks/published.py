"""Settings of the methods for points and pictures as they were published, shared by several tasks."""

from __future__ import annotations

from typing import Any

from ...methods.smc import EVERY_FIFTH


#: Points and digits as arXiv 2506.20701 runs them (appendices B, F and G), spelled out: η = 1, λ = 1 for all, so that all have one target;
#: trees branch, and FK steering, TDS and DAS select, where `schedule` says, at ESS < K/2; FK steering by differences, guidance without weights
#: for DPS, the gradient's shift clipped (the threshold was not printed: here the length of the step's noise). c_uct is the library's. VASR at every
#: fifth of 50 steps as arXiv 2604.06779 says, FVD at the same. SVDD keeps four candidates and draws among them at α = 1/λ, URGE (arXiv 2605.17850)
#: follows the gradient and is weighted at every step: the library's readings, since neither paper has these tasks.
def published(schedule: tuple[float, ...]) -> dict[str, tuple[float, dict[str, Any]]]:
    guided = {"eta": 1.0, "guidance": 1.0, "mean": "score", "clip": 1.0}
    settings: dict[str, dict[str, Any]] = {
        "base": {"eta": 1.0},
        "best-of-n": {"eta": 1.0, "n": None},
        "importance": {"eta": 1.0},
        "auto": {"eta": 1.0, "schedule": EVERY_FIFTH, "resampling": "ssp", "ess_threshold": 0.5, "power": None, "prior": 10.0},
        "fkd": {"eta": 1.0, "potential": "diff", "schedule": schedule, "resampling": "multinomial", "ess_threshold": 0.5},
        "vasr": {"eta": 1.0, "schedule": EVERY_FIFTH, "resampling": "systematic", "order": "score"},
        "fvd": {"eta_base": 0.0, "eta_rebirth": 1.0, "schedule": EVERY_FIFTH, "cap": 0.5},
        "dps": {"eta": 1.0, "zeta": None, "clip": 1.0},
        "tds": {**guided, "schedule": schedule, "ess_threshold": 0.5},
        "das": {**guided, "schedule": schedule, "resampling": "ssp", "ess_threshold": 0.5},
        "urge": {**guided, "schedule": "every", "path": "scaled", "ess_threshold": 0.5},
        "svdd": {"eta": 1.0, "m": 4, "choice": "categorical"},
        "dts": {"eta": 1.0, "schedule": schedule, "c": 2.0, "alpha": 0.8},
        "dts-star": {"eta": 1.0, "schedule": schedule, "c": 2.0, "alpha": 0.8, "c_uct": 1.0},
    }
    return {name: (1.0, own) for name, own in settings.items()}
