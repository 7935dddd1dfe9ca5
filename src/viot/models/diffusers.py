"""Any diffusers pipeline, unmodified, as a Model: what `viot.from_pipeline` makes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..kernel import Gaussian
from ..model import Grid, Prediction
from .levels import Levels, levels_of
from .oracle import Oracle
from .unet import digest, tensor_digest


class Pipeline:
    """A diffusers pipeline as a Model; `viot.from_pipeline` makes it and says what it takes. `prompts` are its P prompts, group g follows prompt g mod P.

    States are float32, whatever the network's precision. `flags` holds what the pipeline's own checker said of the rows decoded last.
    """

    def __init__(self, pipe: Any, *, tiny_vae: Any = None, **call_kwargs: Any) -> None:
        self.pipe, self.tiny_vae = pipe, tiny_vae
        self.levels = levels_of(pipe.scheduler)
        self.oracle = Oracle(pipe, self.levels, {"encode_prompt": Encoder(pipe)} if hasattr(pipe, "encode_prompt") else {})
        self.kernel = Gaussian(fresh=self.levels.fresh)
        self.shared, self.own, self.prompts, self.P = _by_prompt(call_kwargs)
        # Conditions other than text are made for one prompt at a time.
        takes = self.oracle.call_takes
        self._pictures = any(call_kwargs.get(name) is not None for name in takes if name in PICTURES)
        texts = all("prompt" in name for name in self.own)
        self._mixes = texts and not self._pictures and bool(self.own)
        self._count = next((name for name in takes if name.startswith("num_") and name.endswith("_per_prompt")), None)
        self._count = "batch_size" if not self.own and "batch_size" in takes else self._count
        self.dtype = torch.float32
        self.flags: dict[str, Tensor] = {}
        try:
            start = self.oracle.start(None, self._call(torch.arange(self.P), torch.Generator().manual_seed(0)))
        except Uneven:
            self._mixes = False
            start = self.oracle.start(None, self._call(torch.tensor([0]), torch.Generator().manual_seed(0)))
        self.event_shape, self._latent_dtype = tuple(start.shape[1:]), start.dtype
        # The watermark leaves the graph.
        self.differentiable = hasattr(type(pipe).__call__, "__wrapped__") and getattr(pipe, "watermark", None) is None
        self.config = _record(pipe, self.levels, call_kwargs) | {"tiny_vae": tiny_vae is not None}

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    def grid(self, steps: int) -> Grid:
        """The pipeline's own times, with its shifts and spacings, as noise levels."""
        # Some prepare their latents first, from torch's global state if there is no generator.
        scheduler, times = self.oracle.times(steps, self._call(torch.tensor([0]), torch.Generator().manual_seed(0)))
        grid = self.levels.grid(scheduler, times)
        if len(grid) != steps:
            raise ValueError(
                f"{self.levels.name} visits {len(grid)} times where {steps} steps are asked for (two network calls a step, a cut of "
                f"the first times, or times too close to tell apart); ask for {len(grid)} steps if that is meant, or exchange it: "
                f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
            )
        return grid

    def prior(self, n: int, generator: torch.Generator, group: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """x_T (n, *event_shape) as the pipeline starts: noise, or its noised image at the first time t."""
        first = torch.zeros(1, dtype=torch.long) if group is None else group[:1].cpu() % self.P
        return self.oracle.start(t, self._call(first.expand(n), generator)).float()

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        pieces = [(rows, self.oracle.output(x[rows].to(self._latent_dtype), level, call)) for rows, level, call in self._calls(t, group)]
        return self.levels.read(x, _joined(pieces), t)

    def decode(self, x0: Tensor, group: Tensor) -> Tensor:
        """Finished samples, the pipeline's way: float32 in [0, 1], (rows, C, H, W), or (rows, F, C, H, W) for video."""
        # A checker turns pictures into arrays, which have no gradients.
        ungraded = {"safety_checker": None} if torch.is_grad_enabled() and getattr(self.pipe, "safety_checker", None) else {}
        return self._decode(x0, group, **ungraded)

    def preview(self, x0: Tensor, group: Tensor) -> Tensor:
        """As `decode`, for the guesses on the way: the tiny decoder if there is one, neither checker nor watermark."""
        spare = {name: None for name in ("safety_checker", "watermark") if getattr(self.pipe, name, None) is not None}
        if self.tiny_vae is not None:
            spare["vae"] = self.tiny_vae
        return self._decode(x0, group, **spare)

    def release(self) -> None:
        """What the pipeline does at the end of a call, put off until a run ends: offloaded components leave the accelerator."""
        self.pipe.maybe_free_model_hooks()

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def _decode(self, x0: Tensor, group: Tensor, **spare: Any) -> Tensor:
        pieces, flags = [], torch.zeros(len(x0), dtype=torch.bool)
        for rows, _, call in self._calls(None, group):
            images, *more = self.oracle.decoded(x0[rows].to(self._latent_dtype), call, **spare)
            pieces.append((rows, _as_tensor(images)))
            if more and isinstance(more[0], (list, tuple)):
                flags[rows] = torch.tensor([bool(flag) for flag in more[0]])
        checked = getattr(self.pipe, "safety_checker", None) is not None and "safety_checker" not in spare
        self.flags = {"nsfw": flags} if checked else {}
        return _joined(pieces).float()

    def _calls(self, t: Tensor | None, group: Tensor) -> Iterator[tuple[Any, Tensor | None, dict[str, Any]]]:
        """The calls of the pipeline that serve these rows: one per time, and one per prompt where prompts can't share a call."""
        group = group.cpu() % self.P
        apart = ([] if self._mixes else [group]) + ([] if t is None else [t.cpu()])
        if all(bool((column == column[0]).all()) for column in apart):
            yield slice(None), None if t is None else t[0], self._call(group, None)
            return
        keys = list(zip(*(column.tolist() for column in apart), strict=True))
        for key in dict.fromkeys(keys):
            rows = torch.tensor([i for i, k in enumerate(keys) if k == key])
            yield rows, None if t is None else t[rows[0]], self._call(group[rows], None)

    def _call(self, group: Tensor, generator: torch.Generator | None) -> dict[str, Any]:
        """The keywords of a call for these rows: prompts row by row, or one prompt and a count."""
        call, rows, n = dict(self.shared), group.tolist(), len(group)
        if generator is not None:
            call["generator"] = generator
        elif self._pictures and "generator" in self.oracle.call_takes:
            # Encoding a picture draws from the encoder's posterior: the same draw at every call, for every row.
            seeds = [torch.Generator().manual_seed(0) for _ in rows]
            call["generator"] = seeds if n > 1 else seeds[0]
        if self._mixes:
            call |= {name: [value[r] for r in rows] if isinstance(value, list) else value[group] for name, value in self.own.items()}
            return call | {name: [value] * n for name, value in call.items() if isinstance(value, str) and "prompt" in name}
        one = rows[0]
        call |= {name: value[one] if isinstance(value, list) else value[one][None] for name, value in self.own.items()}
        if self._count is not None:
            return call | {self._count: n}
        return call | {name: [value] * n for name, value in call.items() if name in ("prompt", "class_labels") or isinstance(value, str)}


#: Keywords that bring something to look at. Each of them may be a list with one entry per prompt.
PICTURES = ("image", "mask_image", "control_image", "video", "ip_adapter_image", "image_embeds")
LISTS = ("image", "mask_image", "control_image", "video", "class_labels")


def _by_prompt(call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str] | None, int]:
    """The keywords that all prompts share, those with an entry for each of P prompts, the prompts, and P."""
    given = {name: value for name, value in call.items() if value is not None}
    prompts = given.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else None if prompts is None else list(prompts)
    if prompts is not None and (not prompts or not all(isinstance(p, str) for p in prompts)):
        raise ValueError(f"prompt must be a string or a list of strings, not {call['prompt']!r}")
    if prompts is not None:
        given["prompt"] = prompts
    lists = {n: v for n, v in given.items() if isinstance(v, (list, tuple)) and ("prompt" in n or n in LISTS)}
    tensors = {n: v for n, v in given.items() if isinstance(v, Tensor) and "prompt" in n}
    counts = [len(v) for v in ([prompts] if prompts else [tensors[n] for n in ("prompt_embeds",) if n in tensors] or list(lists.values()))]
    P = max(counts, default=1)  # noqa: N806
    own = {name: list(value) for name, value in lists.items()} | tensors
    for name, value in own.items():
        if len(value) != P:
            raise ValueError(f"{name} has {len(value)} entries for {P} prompts; give one for all, or one for each")
    return {n: v for n, v in given.items() if n not in own}, own, prompts, P


class Uneven(Exception):
    """Prompts whose encodings have different shapes: they can't share a call."""


def _pick(pieces: list[Any], index: list[int]) -> Any:
    """The rows of one output of an encoder, put together from those of the prompts that occur."""
    if isinstance(pieces[0], list):
        return [pieces[i][0] for i in index]
    if len({piece.shape for piece in pieces}) > 1:
        raise Uneven
    if len(pieces) == 1:
        return pieces[0].expand(len(index), *pieces[0].shape[1:])
    return torch.cat(pieces)[torch.tensor(index, device=pieces[0].device)]


class Encoder:
    """A pipeline's `encode_prompt` that encodes every prompt once, by itself, and answers from memory."""

    def __init__(self, pipe: Any) -> None:
        self.encode = pipe.encode_prompt
        self.signature = inspect.signature(self.encode)
        self.count = next((name for name in self.signature.parameters if name.startswith("num_") and name.endswith("_per_prompt")), None)
        self.known: dict[Any, list[Any]] = {}
        self.per_row: dict[str, list[bool]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rest = dict(self.signature.bind(*args, **kwargs).arguments)
        if any(isinstance(value, (Tensor, dict)) for value in rest.values()):
            return self.encode(*args, **kwargs)
        repeats = rest.get(self.count, 1) if self.count is not None else 1
        rest |= {self.count: 1} if self.count in rest else {}
        columns = {n: [v] if isinstance(v, str) else v for n, v in rest.items() if "prompt" in n and isinstance(v, (str, list))}
        # A prompt and what goes with it: texts for one prompt go with every prompt.
        rows = len(columns.get("prompt", ()))
        columns = {n: v * rows if len(v) == 1 else v for n, v in columns.items()}
        if not rows or any(len(v) != rows for v in columns.values()):
            return self.encode(*args, **kwargs)
        rest = {n: v for n, v in rest.items() if n not in columns}
        # The device is among them: a pipeline that has moved encodes anew.
        about = repr(sorted(rest.items(), key=str))

        def encoded(row: tuple[str, ...], times: int = 1) -> list[Any]:
            found = self.encode(**rest, **{name: [text] * times for name, text in zip(columns, row, strict=True)})
            return list(found) if isinstance(found, tuple) else [found]

        def answer(found: list[Any]) -> Any:
            return tuple(found) if len(found) > 1 else found[0]

        texts = list(zip(*columns.values(), strict=True))
        distinct = list(dict.fromkeys(texts))
        for row in distinct:
            if (about, row) not in self.known:
                self.known[about, row] = encoded(row)
        pieces = [self.known[about, row] for row in distinct]
        index = [distinct.index(row) for row in texts for _ in range(repeats)]
        if len(index) == 1:
            return answer(pieces[0])
        if about not in self.per_row:
            # What grows with the number of prompts belongs to them; the rest (positions, say) is shared.
            two = encoded(distinct[0], 2)
            self.per_row[about] = [hasattr(a, "__len__") and len(b) == 2 * len(a) for a, b in zip(pieces[0], two, strict=True)]
        grows = self.per_row[about]
        return answer([_pick([piece[i] for piece in pieces], index) if grows[i] else pieces[0][i] for i in range(len(grows))])


# -- small things ---------------------------------------------------------------------------------------------------------------------


def _joined(pieces: list[tuple[Any, Tensor]]) -> Tensor:
    """The rows of several calls, in their order."""
    if len(pieces) == 1:
        return pieces[0][1]
    order = torch.cat([rows for rows, _ in pieces]).argsort()
    return torch.cat([piece for _, piece in pieces])[order.to(pieces[0][1].device)]


def _as_tensor(images: Any) -> Tensor:
    """What a pipeline calls its pictures, as one tensor."""
    if isinstance(images, (list, tuple)):
        return torch.stack([torch.as_tensor(image) for image in images])
    return torch.as_tensor(images)


def _record(pipe: Any, levels: Levels, call: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the chain: the pipeline, its scheduler, its network's weights, and how it is called."""
    net = next((part for name in ("unet", "transformer") if (part := getattr(pipe, name, None)) is not None), None)
    told = {name: value for name, value in levels.config.items() if not name.startswith("_")}
    said = {}
    for name, value in call.items():
        plain = isinstance(value, (str, int, float, type(None))) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
        said[name] = value if plain else tensor_digest(value) if isinstance(value, Tensor) else type(value).__name__
    return {
        "pipeline": type(pipe).__name__,
        "name": pipe.config.get("_name_or_path"),
        "scheduler": {"type": levels.name, **told},
        "weights": None if net is None else digest(net, sums=False),
        "network_dtype": str(getattr(net, "dtype", None)),
        "call": said,
    }
