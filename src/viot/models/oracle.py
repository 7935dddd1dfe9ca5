"""An unmodified diffusers pipeline as a function.

A pipeline couples four things: encoding a prompt, a start, a loop over the scheduler's times, a decoder. With its scheduler exchanged for a
subclass of its own class, whose `set_timesteps` yields chosen times, or none, and whose `step` only records what it was given, one call
of the pipeline is one of: the guided output of the network at any state and time; the start; the decoder; the times. Nothing of the
pipeline is copied, so whatever it does (guidance, packing, control nets, adapters, offloading) it still does.

The pipeline is borrowed for one call at a time, and everything on it is as before when the call ends, also by an error.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .levels import Levels
from .stand_in import Idle, Stop, asked, told


class Oracle:
    """What one pipeline answers. `levels` are those of its scheduler; `always` is lent to it at every call. Each method is one call."""

    def __init__(self, pipe: Any, levels: Levels, always: dict[str, Any]) -> None:
        self.pipe, self.levels, self.always = pipe, levels, always
        self.call_takes = inspect.signature(type(pipe).__call__).parameters
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
        # Some write into the state they were given, which no leaf of a graph allows.
        ends = self._run(scheduler, self._short(call), latents=x.clone() if x.requires_grad else x)[0]
        self._check(scheduler, x, ends)
        return scheduler.outputs[0]

    @torch.no_grad()
    def probe(self, x: Tensor, t: Tensor, call: Callable[[], dict[str, Any]]) -> None:
        """TypeError if the output at x (1, …) and t depends on anything else: its place in the loop, the steps and states before.

        Four rows of the network: one by itself, and a loop of three that begins elsewhere and is at x and t the second time.
        """
        alone = self.output(x, t, call())
        scheduler = self._told(torch.stack([t, t, (t / 2).to(t.dtype)]), x.device)
        # Where the scheduler has another scale than the library, only what it scales itself may count.
        scheduler.then, scheduler.factor = x, 2.0 if self.levels.rescales(self.pipe.scheduler) else 1.0
        self._run(scheduler, {**self._short(call()), "num_inference_steps": 3}, latents=-x)
        states = (-x, x * scheduler.factor, x * scheduler.factor)
        kept = len(scheduler.given) == 3 and all(map(torch.equal, (given.to(x.dtype) for given in scheduler.given), states))
        if not kept or not torch.allclose(scheduler.outputs[1], alone, rtol=0, atol=1e-3 * float(alone.abs().max())):
            raise TypeError(
                f"{self.name}'s answer to a state and a time depends on where its own loop is (a schedule of its guidance, a momentum, what "
                f"it keeps of the steps before) or on its scheduler's scale, so its loop can't be taken over. Switch that off, or write a "
                f"Model around its network (see viot.Model)."
            )

    def _check(self, scheduler: Any, x: Tensor, ends: Any) -> None:
        """Is this pipeline a function of the state? What its loop does beside predicting would be lost, and another law sampled in silence."""
        calls = len(scheduler.outputs)
        given = scheduler.given[0] if calls else x
        if calls != 1:
            what = f"calls its scheduler {calls} times a step"
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

    @torch.no_grad()
    def start(self, t: Tensor | None, call: dict[str, Any]) -> Tensor:
        """x at the first time t, in the pipeline's own shape and packing, from the call's generator."""
        if not self.from_image and self.gives_latents:
            try:
                found = self._run(self._told(None), {**call, "output_type": "latent"})[0]
                if isinstance(found, Tensor):
                    return found
            except (UnboundLocalError, ValueError):
                # A loop must run at least once, or latents are never given out. Then they are caught on their way in.
                pass
            self.gives_latents = False
        first = t if t is not None else self._some_time()
        scheduler, prepares = self._told(first), getattr(self.pipe, "prepare_latents", None)
        if prepares is None:
            self._run(scheduler, call, **self._idle())
            return scheduler.given[0]

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            raise Stop(prepares(*args, **kwargs))

        try:
            self._run(scheduler, call, prepare_latents=prepare_latents)
        except Stop as stop:
            return stop.found[0] if isinstance(stop.found, tuple) else stop.found
        raise RuntimeError(f"{self.name} never prepared its latents; it can't be used as a function")

    def decoded(self, x0: Tensor, call: dict[str, Any], **lent: Any) -> tuple[Any, ...]:
        """What the pipeline makes of clean latents: its own outputs, the picture first. `lent` components stand in for its own."""
        call = {**call, "output_type": "pt"}
        if self.gives_latents or self.from_image:
            return self._run(self._told(None, x0.device), call, latents=x0, **lent)
        # A step that costs nothing: the network is out, and the state stays.
        return self._run(self._told(self._some_time(), x0.device), call, latents=x0, **self._idle(), **lent)

    @torch.no_grad()
    def times(self, steps: int, call: dict[str, Any]) -> tuple[Any, Tensor]:
        """The pipeline's scheduler with its times set for `steps` network calls, and the times it would visit."""
        if not self.from_image:
            scheduler = self._asked(steps, call)
            return scheduler, scheduler.timesteps
        # The strength cuts the first times off: ask for so many that the right number is left.
        strength = float(call.get("strength", self.call_takes["strength"].default))
        if steps / strength > self.levels.steps:
            raise ValueError(
                f"strength={strength:g} leaves {steps} steps only of {steps / strength:.0f}, more than the {self.levels.steps} that its "
                f"scheduler knows; ask for fewer steps, or more strength"
            )
        n = wanted = max(steps, round(steps / strength))
        for n in (wanted, wanted + 1, wanted - 1, wanted + 2, steps):
            scheduler = self._asked(n, call)
            if len(scheduler.timesteps.unique_consecutive()) == steps:
                break
        return scheduler, scheduler.timesteps

    @property
    def name(self) -> str:
        return type(self.pipe).__name__

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def _short(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call that ends before the decoder where it can."""
        return {**call, "output_type": "latent" if self.gives_latents else "pt"}

    def _some_time(self) -> Tensor:
        """A time that the network knows. Some schedulers have none before they are asked for steps."""
        times = self.pipe.scheduler.timesteps
        return torch.tensor([self.levels.steps // 2]) if times is None else times.reshape(-1)[:1]

    def _idle(self) -> dict[str, Any]:
        return {name: Idle(net) for name in ("unet", "transformer") if (net := getattr(self.pipe, name, None)) is not None}

    def _told(self, t: Tensor | None, place: torch.device | None = None) -> Any:
        scheduler = copy.copy(self.pipe.scheduler)
        scheduler.__class__ = told(type(self.pipe.scheduler))
        scheduler.levels, scheduler.query = self.levels, t
        scheduler.outputs, scheduler.given, scheduler.then, scheduler.factor = [], [], None, 1.0
        # Asking a pipeline for its device takes longer than anything else here.
        scheduler.place = self.pipe._execution_device if place is None else place
        # States here have the scale of x_t = α x0 + σ ε, whatever the scheduler's is.
        scheduler.init_noise_sigma = 1.0
        return scheduler

    def _asked(self, steps: int, call: dict[str, Any]) -> Any:
        scheduler = copy.copy(self.pipe.scheduler)
        scheduler.__class__ = asked(type(self.pipe.scheduler))
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
        except ZeroDivisionError as error:
            raise ValueError(f"{self.name} has no times for a run of {steps} steps") from error
        raise RuntimeError(f"{self.name} never set its times; it can't be used as a function")

    def _run(self, scheduler: Any, call: dict[str, Any], latents: Tensor | None = None, **lent: Any) -> tuple[Any, ...]:
        """One call of the pipeline with the scheduler given, from these latents if any."""
        # Not 1: to some, a single step means a distilled network.
        call = {"num_inference_steps": 2, **call}
        if self.from_image:
            # Chosen times are not to be cut; pipelines refuse fewer than one step.
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
            out = _forward(type(self.pipe))(self.pipe, **call, return_dict=False)
        # Some give their only output without a tuple around it, or the whole answer all the same.
        return out if isinstance(out, tuple) else out.to_tuple() if hasattr(out, "to_tuple") else (out,)


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
    parts = [part for part in before.values() if isinstance(part, torch.nn.Module)]
    precisions = [precision_of(part) for part in parts]
    # Perturbed attention puts its own processors in for a call.
    processors = {
        part: dict(part.attn_processors) for part in parts if hasattr(pipe, "_set_pag_attn_processor") and hasattr(part, "attn_processors")
    }
    try:
        vars(pipe).update(quiet | lent)
        yield
    except BaseException:
        # What a pipeline would have put back itself: some decode in float32 and return to half precision afterwards.
        for part, precision in zip(parts, precisions, strict=True):
            if precision is not None and precision_of(part) != precision:
                part.to(dtype=precision)
        for part, own in processors.items():
            part.set_attn_processor(own)
        raise
    finally:
        vars(pipe).clear()
        vars(pipe).update(before)


def precision_of(part: torch.nn.Module) -> torch.dtype | None:
    """The dtype of a module's weights; None if it has none."""
    return next((p.dtype for p in part.parameters()), None)
