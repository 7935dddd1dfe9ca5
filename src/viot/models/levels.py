"""What a diffusers scheduler says of noise: the levels of its times, and how the network's output is to be read.

Schedulers differ in how they scale a state and in how they step. Neither matters here: every state is x_t = α_t x0 + σ_t ε, the library's
kernels do the stepping, and of the scheduler only the betas, the spacing of its times and the prediction type are left. Levels are a
function of the time alone, so that a grid and a prediction can't disagree.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model import Grid, Prediction


class Levels:
    """Noise levels and prediction type of one scheduler. `fresh`: each step draws all its noise anew, as consistency models do."""

    fresh = False

    def __init__(self, scheduler: Any) -> None:
        self.name = type(scheduler).__name__
        self.config = dict(scheduler.config)
        self.steps = int(self.config.get("num_train_timesteps") or 1000)

    def record(self) -> dict[str, Any]:
        """The scheduler's type and configuration, for the record of a run."""
        return {"type": self.name, **{name: value for name, value in self.config.items() if not name.startswith("_")}}

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t of the times t, float64 on the CPU."""
        raise NotImplementedError

    def read(self, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        """The prediction that the network's output for x (rows, …) at times t (rows,) means."""
        raise NotImplementedError

    def scaled(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network is fed with for x at one time t."""
        return x

    def native(self, t: Tensor) -> Tensor:
        """σ as the scheduler's own `sigmas` has it, for pipelines that look there: α is 1 for most."""
        alpha, sigma = self.at(t)
        return sigma / alpha

    def grid(self, scheduler: Any, times: Tensor) -> Grid:
        """The grid of the scheduler's times, as its `set_timesteps` left them, and the level at which it ends."""
        # Two-stage schedulers name a time twice.
        times = times.detach().cpu().flatten().unique_consecutive()
        alphas, sigmas = self.at(times)
        alpha, sigma = (1.0, 0.0) if self.fresh else self.end(scheduler)
        return Grid(times, torch.cat([alphas, alphas.new_tensor([alpha])]), torch.cat([sigmas, sigmas.new_tensor([sigma])]))

    def end(self, scheduler: Any) -> tuple[float, float]:
        """α and σ where the chain ends."""
        return 1.0, 0.0

    def start(self, scheduler: Any) -> float:
        """What unit noise is scaled by to make x_T."""
        return 1.0

    def rescales(self, scheduler: Any) -> bool:
        """Does the scheduler scale its states otherwise than x_t = α_t x0 + σ_t ε?"""
        return False

    def columns(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """α_t and σ_t (rows, 1, …) beside x."""
        alpha, sigma = (level.to(x.dtype).to(x.device).view(-1, *[1] * (x.ndim - 1)) for level in self.at(t))
        return alpha, sigma

    def mean(self, x: Tensor, out: Tensor) -> Tensor:
        """The part of the output that predicts: networks that learn their variance append it."""
        return (out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out).to(x.dtype)


class VariancePreserving(Levels):
    """Schedulers with `alphas_cumprod`: α = √ᾱ, σ = √(1 − ᾱ). Between whole times log or linear interpolation, as the scheduler does."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.type = self.config.get("prediction_type", "epsilon")
        if self.type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"unknown prediction type {self.type!r} of {self.name}; known are epsilon, v_prediction and sample")
        if self.config.get("thresholding"):
            raise ValueError(
                f"{self.name} has dynamic thresholding, which depends on all pixels of an image and has no kernel; set thresholding=False"
            )
        self.abar = scheduler.alphas_cumprod.detach().cpu().double()
        ways = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
        self.logarithmic = any(self.config.get(way) for way in ways) or self.config.get("interpolation_type") == "log_linear"
        self.clip = self.config.get("clip_sample_range", 1.0) if self.config.get("clip_sample") else None
        # DDIM-type schedulers clip x0 and keep the network's ε; DDPM-type ones derive the step from the clipped x0 alone.
        self.keeps_eps = "DDPM" not in self.name and not self.config.get("use_clipped_model_output", False)
        self.fresh = self.name == "LCMScheduler"
        # Stable Video Diffusion tells its network ¼ log σ.
        self.continuous = self.config.get("timestep_type") == "continuous" and self.type == "v_prediction"

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t).detach().cpu().double()
        if self.continuous:
            ratio = (4 * t).exp()
            return (1 + ratio**2).rsqrt(), ratio * (1 + ratio**2).rsqrt()
        t = t.clamp(0, len(self.abar) - 1)
        low = t.floor().long()
        if bool((low == t).all()):
            abar = self.abar[low]
            return abar.sqrt(), (1 - abar).sqrt()
        high, part = (low + 1).clamp(max=len(self.abar) - 1), t - low
        ratio = ((1 - self.abar) / self.abar).sqrt()
        ratio = (
            torch.lerp(ratio[low].log(), ratio[high].log(), part).exp() if self.logarithmic else torch.lerp(ratio[low], ratio[high], part)
        )
        return (1 + ratio**2).rsqrt(), ratio * (1 + ratio**2).rsqrt()

    def end(self, scheduler: Any) -> tuple[float, float]:
        if getattr(scheduler, "sigmas", None) is not None:
            ratio = float(scheduler.sigmas[-1])
            return (1 + ratio**2) ** -0.5, ratio * (1 + ratio**2) ** -0.5
        abar = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        return abar**0.5, (1 - abar) ** 0.5

    def rescales(self, scheduler: Any) -> bool:
        return float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0

    def read(self, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        out, (a, s) = self.mean(x, out), self.columns(x, t)
        if self.type == "epsilon":
            x0, eps = (x - s * out) / a, out
        elif self.type == "v_prediction":
            x0, eps = a * x - s * out, a * out + s * x
        else:
            x0, eps = out, (x - a * out) / s
        if self.clip is not None:
            x0 = x0.clamp(-self.clip, self.clip)
        if self.fresh:
            # The boundary condition of consistency models: at t = 0 the network's answer is x itself.
            scaled = self.config["timestep_scaling"] * t.to(x.device, x.dtype).view_as(a)
            skip = 0.25 / (scaled**2 + 0.25)
            return Prediction(skip * x + scaled / (scaled**2 + 0.25).sqrt() * x0)
        return Prediction(x0, eps if self.clip is None or self.keeps_eps else None)


class Flow(Levels):
    """Flow matching: x_t = (1 − σ) x0 + σ ε, the output is ε − x0, and the time is σ in training steps, whatever shift made it.

    With `invert_sigmas` (Mochi, OmniGen) the time counts what is clean, and the output is x0 − ε.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.fresh = bool(self.config.get("stochastic_sampling")) or self.name == "FlowMatchLCMScheduler"
        self.inverted = bool(self.config.get("invert_sigmas"))

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.as_tensor(t).detach().cpu().double() / self.steps
        return (sigma, 1 - sigma) if self.inverted else (1 - sigma, sigma)

    def native(self, t: Tensor) -> Tensor:
        return self.at(t)[0 if self.inverted else 1]

    def grid(self, scheduler: Any, times: Tensor) -> Grid:
        if float(times.max()) > self.steps:
            raise ValueError(f"{self.name} goes to σ = {float(times.max()) / self.steps:g}; a flow from noise to data has σ ≤ 1")
        return super().grid(scheduler, times)

    def end(self, scheduler: Any) -> tuple[float, float]:
        sigma = float(scheduler.sigmas[-1])
        return (sigma, 1 - sigma) if self.inverted else (1 - sigma, sigma)

    def read(self, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        out, (a, s) = self.mean(x, out), self.columns(x, t)
        out = -out if self.inverted else out
        return Prediction(x - s * out, x + a * out)


class Preconditioned(Levels):
    """Networks in Karras's form (arXiv 2206.00364), x_t = x0 + σ ε: D(x) = c_skip x + c_out F(c_in x). EDM, and consistency models."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.data = float(self.config.get("sigma_data", 0.5))
        self.fresh = self.name == "CMStochasticIterativeScheduler"
        # Both tell the network ¼ log σ; consistency models a thousand times that.
        self.per_log = 4.0 / 1000 if self.fresh else 4.0
        self.least = float(self.config.get("sigma_min", 0.002)) if self.fresh else 0.0
        self.clip = self.fresh and bool(self.config.get("clip_denoised", True))
        self.sign = -1.0 if self.config.get("prediction_type") == "v_prediction" else 1.0

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = (torch.as_tensor(t).detach().cpu().double() * self.per_log).exp()
        return torch.ones_like(sigma), sigma

    def scaled(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = float(self.at(t)[1])
        return x / (sigma**2 + self.data**2) ** 0.5

    def start(self, scheduler: Any) -> float:
        return float(scheduler.init_noise_sigma)

    def read(self, x: Tensor, out: Tensor, t: Tensor) -> Prediction:
        out, (_, s) = self.mean(x, out), self.columns(x, t)
        above, norm = s - self.least, (s**2 + self.data**2).sqrt()
        x0 = self.data**2 / (above**2 + self.data**2) * x + self.sign * above * self.data / norm * out
        return Prediction(x0.clamp(-1, 1) if self.clip else x0)


def why_not(scheduler: type | Any) -> str | None:
    """The reason why chains of this scheduler can't be steered, or None. Takes the class too, and then knows only the obvious."""
    kind = scheduler if isinstance(scheduler, type) else type(scheduler)
    name = kind.__name__
    if name in ("AmusedScheduler", "BlockRefinementScheduler", "VQDiffusionScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler"):
        return f"{name} moves tokens, not a Gaussian state: masked models have an adapter of their own"
    if "Inverse" in name or name == "RePaintScheduler":
        return f"{name} does not go from noise to data in one direction"
    if not isinstance(scheduler, type) and _family(scheduler) is None:
        return (
            f"the noise levels of {name} are not known. If the network was trained as Stable Diffusion's were, exchange it: "
            f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    return None


def levels_of(scheduler: Any) -> Levels:
    """The levels of a diffusers scheduler. TypeError with the reason where they are not known."""
    if reason := why_not(scheduler):
        raise TypeError(reason)
    family = _family(scheduler)
    assert family is not None
    return family(scheduler)


def _family(scheduler: Any) -> type[Levels] | None:
    config, name = scheduler.config, type(scheduler).__name__
    if name in ("CMStochasticIterativeScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        return Preconditioned
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas") or name.startswith("FlowMatch"):
        return Flow if hasattr(scheduler, "sigmas") else None
    if getattr(scheduler, "alphas_cumprod", None) is not None:
        return VariancePreserving
    return None
