"""An unmodified diffusers pipeline as a function.

A pipeline couples four things: encoding a prompt, a start, a loop over the scheduler's times, a decoder. With its scheduler exchanged for a
subclass of its own class, whose `set_timesteps` yields one chosen time, or none, and whose `step` only records what it was given, one call
of the pipeline is one of: the guided output of the network at any state and time; the start; the decoder; the times. Nothing of the
pipeline is copied, so whatever it does (guidance, packing, control nets, adapters, offloading) it still does.

The pipeline is borrowed for one call at a time, and everything on it is as before when the call ends, also by an error.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
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
def _told(kind: type) -> type:
    """A subclass of a scheduler's class that tells and does as `query` and `levels` say, and never moves a state."""

    class Told(kind):
        levels: Levels
        query: Tensor | None
        place: torch.device
        output: Tensor | None
        given: Tensor | None
        calls: int

        # The signatures stay the base class's: pipelines look at them to see what they may pass.
        @functools.wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            t = self.query
            self.timesteps = torch.empty(0, device=self.place) if t is None else t.reshape(1).to(self.place)
            self.num_inference_steps = len(self.timesteps)
            self._step_index = self._begin_index = None
            if t is not None and getattr(self, "sigmas", None) is not None:
                self.sigmas = torch.cat([self.levels.native(self.timesteps), torch.zeros(1, dtype=torch.float64)]).to(self.sigmas)

        @functools.wraps(kind.step)
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.output, self.given, self.calls = model_output, sample, self.calls + 1
            # The second is where consistency models look for the clean guess.
            return (sample, sample) if kwargs.get("return_dict") is False else _Step(sample)

        def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
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
def _asked(kind: type) -> type:
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


class Oracle:
    """What one pipeline answers. `levels` are those of its scheduler; `always` is lent to it at every call. Each method is one call."""

    def __init__(self, pipe: Any, levels: Levels, always: dict[str, Any]) -> None:
        self.pipe, self.levels, self.always = pipe, levels, always
        self.call_takes = frozenset(inspect.signature(type(pipe).__call__).parameters)
        # An image to start from: the start depends on it and on the time, and `strength` cuts the times.
        self.from_image = "strength" in self.call_takes
        self.gives_latents = True
        prepares = getattr(pipe, "prepare_latents", None)
        # Some take `latents` and don't use them: what counts is who prepares them.
        self.takes_latents = "latents" in self.call_takes and (
            not self.from_image or prepares is None or "latents" in inspect.signature(prepares).parameters
        )

    def output(self, x: Tensor, t: Tensor, call: dict[str, Any]) -> Tensor:
        """The guided output of the network at x (rows, …) and one time t. Gradients pass if they are on."""
        scheduler = self._told(t, x.device)
        ends = self._run(scheduler, {**call, "output_type": "latent" if self.gives_latents else "pt"}, latents=x)[0]
        self._check(scheduler, x, ends)
        return scheduler.output

    def _check(self, scheduler: Any, x: Tensor, ends: Any) -> None:
        """Is this pipeline a function of the state? What its loop does beside predicting would be lost, and another law sampled in silence."""
        given = scheduler.given
        if scheduler.calls != 1:
            what = f"calls its scheduler {scheduler.calls} times a step"
        elif given.shape != x.shape or not torch.equal(given.detach().to(x.dtype), x.detach()):
            what = "hands its scheduler something else than the state it was given (a part of it, or one that it changed before)"
        elif self.gives_latents and isinstance(ends, Tensor) and ends.shape == given.shape and not torch.equal(ends, given.to(ends.dtype)):
            what = (
                "changes the state after each step (as inpainting does without a network of its own: it pastes the known part back in; "
                "a checkpoint whose network takes the mask, with 9 channels, has no need to)"
            )
        else:
            return
        raise TypeError(f"{self.name} {what}, so its loop can't be taken over. Write a Model around its network (see viot.Model).")

    def start(self, t: Tensor | None, call: dict[str, Any]) -> Tensor:
        """x at the first time t, in the pipeline's own shape and packing, from the call's generator."""
        if not self.from_image and self.gives_latents:
            try:
                return self._run(self._told(None), {**call, "output_type": "latent"})[0]
            except (UnboundLocalError, ValueError):
                # A loop must run at least once, or latents are never given out. Then they are caught on their way in.
                self.gives_latents = False
        prepares = self.pipe.prepare_latents

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            raise Stop(prepares(*args, **kwargs))

        first = t if t is not None else self.pipe.scheduler.timesteps[:1]
        try:
            self._run(self._told(first), call, prepare_latents=prepare_latents)
        except Stop as stop:
            return stop.found[0] if isinstance(stop.found, tuple) else stop.found
        raise RuntimeError(f"{self.name} never prepared its latents; it can't be used as a function")

    def decoded(self, x0: Tensor, call: dict[str, Any], **lent: Any) -> tuple[Any, ...]:
        """What the pipeline makes of clean latents: its own outputs, the picture first. `lent` components stand in for its own."""
        call = {**call, "output_type": "pt"}
        if self.gives_latents or self.from_image:
            return self._run(self._told(None, x0.device), call, latents=x0, **lent)
        # A step that costs nothing: the network is out, and the state stays.
        idle = {name: _Idle(net) for name in ("unet", "transformer") if (net := getattr(self.pipe, name, None)) is not None}
        return self._run(self._told(self.pipe.scheduler.timesteps[-1:], x0.device), call, latents=x0, **idle, **lent)

    def times(self, steps: int, call: dict[str, Any]) -> tuple[Any, Tensor]:
        """The pipeline's scheduler with its times set for `steps` network calls, and the times it would visit."""
        if not self.from_image:
            scheduler = self._asked(steps, call)
            return scheduler, scheduler.timesteps
        # The strength cuts the first times off: ask for so many that the right number is left.
        default = inspect.signature(type(self.pipe).__call__).parameters["strength"].default
        strength = float(call.get("strength", default))
        n = wanted = max(steps, round(steps / max(strength, 1e-3)))
        for n in (wanted, wanted + 1, wanted - 1, wanted + 2):
            scheduler = self._asked(n, call)
            if len(scheduler.timesteps.unique_consecutive()) == steps:
                break
        return scheduler, scheduler.timesteps

    @property
    def name(self) -> str:
        return type(self.pipe).__name__

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def _told(self, t: Tensor | None, place: torch.device | None = None) -> Any:
        scheduler = copy.copy(self.pipe.scheduler)
        scheduler.__class__ = _told(type(self.pipe.scheduler))
        scheduler.levels, scheduler.query, scheduler.output, scheduler.calls = self.levels, t, None, 0
        # Asking a pipeline for its device takes longer than anything else here.
        scheduler.place = self.pipe._execution_device if place is None else place
        # States here have the scale of x_t = α x0 + σ ε, whatever the scheduler's is.
        scheduler.init_noise_sigma = 1.0
        return scheduler

    def _asked(self, steps: int, call: dict[str, Any]) -> Any:
        scheduler = copy.copy(self.pipe.scheduler)
        scheduler.__class__ = _asked(type(self.pipe.scheduler))
        call = {**call, "num_inference_steps": steps, "output_type": "latent"}
        cuts = getattr(self.pipe, "get_timesteps", None) if self.from_image else None
        # With a strength, the times are those that the pipeline's own cut leaves.
        scheduler.leave = cuts is None

        def get_timesteps(*args: Any, **kwargs: Any) -> Any:
            assert cuts is not None
            scheduler.timesteps = cuts(*args, **kwargs)[0]
            raise Stop(scheduler)

        try:
            self._call(call, {"scheduler": scheduler} | ({} if cuts is None else {"get_timesteps": get_timesteps}))
        except Stop as stop:
            return stop.found
        raise RuntimeError(f"{self.name} never set its times; it can't be used as a function")

    def _run(self, scheduler: Any, call: dict[str, Any], latents: Tensor | None = None, **lent: Any) -> tuple[Any, ...]:
        """One call of the pipeline with the scheduler given, from these latents if any."""
        # Not 1: to some, a single step means a distilled network.
        call = {**call, "num_inference_steps": 2}
        if self.from_image:
            # One chosen time is not to be cut; pipelines refuse fewer than one step.
            lent["get_timesteps"] = lambda *args, **kwargs: (scheduler.timesteps, max(1, len(scheduler.timesteps)))
        if latents is None:
            # x_T in the scale of its own states, if that is the library's too.
            scheduler.init_noise_sigma = self.levels.start(self.pipe.scheduler)
        elif self.takes_latents:
            call["latents"] = latents
        else:
            lent["prepare_latents"] = lambda *args, **kwargs: latents
        return self._call(call, {"scheduler": scheduler, **lent})

    def _call(self, call: dict[str, Any], lent: dict[str, Any]) -> tuple[Any, ...]:
        with borrowed(self.pipe, self.always | lent):
            return _forward(type(self.pipe))(self.pipe, **call, return_dict=False)


class _Idle:
    """A network that answers nothing, at no cost, and is in all else the one it stands in for."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, x: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        out = torch.zeros_like(x)
        return SimpleNamespace(sample=out) if return_dict else (out,)


def _forward(kind: type) -> Callable:
    """The pipeline's `__call__`; where gradients are on, without the no_grad that is wrapped around it."""
    call = kind.__call__
    return getattr(call, "__wrapped__", call) if torch.is_grad_enabled() else call


@contextlib.contextmanager
def borrowed(pipe: Any, lent: dict[str, Any]) -> Iterator[None]:
    """The pipeline with these attributes, quiet, and keeping its components where they are; all as before afterwards, also on error.

    Written into the instance's dictionary: the class's own `__setattr__` would record the exchange in the pipeline's configuration.
    """
    before = dict(vars(pipe))
    quiet = {"_progress_bar_config": {**getattr(pipe, "_progress_bar_config", {}), "disable": True}, "maybe_free_model_hooks": lambda: None}
    try:
        vars(pipe).update(quiet | lent)
        yield
    finally:
        vars(pipe).clear()
        vars(pipe).update(before)
