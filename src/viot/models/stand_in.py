"""What stands in for a pipeline's own parts during one call: schedulers that tell instead of stepping, and a network that costs nothing."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .levels import Levels


class Stop(Exception):
    """Carries `found` out of a pipeline."""

    def __init__(self, found: Any) -> None:
        super().__init__("the pipeline has told what was wanted")
        self.found = found


@functools.cache
def told(kind: type) -> type:
    """A subclass of a scheduler's class that tells and does as `query` and `levels` say, and never moves a state."""
    # CogVideoX's steps take the previous guess first.
    place = list(inspect.signature(kind.step).parameters)[1:]

    class Told(kind):
        levels: Levels
        query: Tensor | None
        place: torch.device
        outputs: list[Tensor]
        given: list[Tensor]
        #: The state after the first step, and how much larger than the library's the states are from then on.
        then: Tensor | None
        factor: float

        # The signatures stay the base class's: pipelines look at them to see what they may pass.
        @functools.wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            t = self.query
            self.timesteps = torch.empty(0, device=self.place) if t is None else t.reshape(-1).to(self.place)
            self.num_inference_steps = len(self.timesteps)
            self._step_index, self._begin_index = 0, None
            if t is not None and getattr(self, "sigmas", None) is not None:
                self.sigmas = torch.cat([self.levels.native(self.timesteps), torch.zeros(1, dtype=torch.float64)]).to(self.sigmas)

        @functools.wraps(kind.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            named = dict(zip(place, args, strict=False)) | kwargs
            # Some write the answer into the state that they gave.
            self.given.append(named["sample"] if self.then is None else named["sample"].clone())
            self.outputs.append(named["model_output"])
            sample = named["sample"] if self.then is None or len(self.outputs) > 1 else self.then * self.factor
            # The second is where consistency models look for the clean guess.
            return (sample, sample) if kwargs.get("return_dict") is False else _Step(sample)

        def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
            sample = sample / self.factor if self.outputs else sample
            return self.levels.scaled(sample, torch.as_tensor(timestep))

        def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            alpha, sigma = self.levels.columns(original_samples, timesteps.reshape(-1)[:1])
            return alpha * original_samples + sigma * noise

        def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
            return self.add_noise(sample, noise, timestep)

    # A plain attribute in the place of some base classes' property.
    setattr(Told, "init_noise_sigma", 1.0)  # noqa: B010
    Told.__name__, Told.__qualname__ = kind.__name__, kind.__qualname__
    return Told


@functools.cache
def asked(kind: type) -> type:
    """A subclass of a scheduler's class that leaves the pipeline once the times are set."""

    class Asked(kind):
        leave = True

        @functools.wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            if self.leave:
                raise Stop(self)

    Asked.__name__, Asked.__qualname__ = kind.__name__, kind.__qualname__
    return Asked


class _Step:
    """The answer of a step that did not move."""

    def __init__(self, sample: Tensor) -> None:
        self.prev_sample = self.pred_original_sample = sample

    def __getitem__(self, i: int) -> Tensor:
        return self.prev_sample


class Idle:
    """A network that answers nothing, at no cost, and is in all else the one it stands in for."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        x: Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        # A learned variance is a second set of channels.
        channels = getattr(self.network.config, "out_channels", None) or x.shape[1]
        out = x.new_zeros(len(x), channels, *x.shape[2:])
        return SimpleNamespace(sample=out) if return_dict else (out,)
