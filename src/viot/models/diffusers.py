"""Any diffusers pipeline, unmodified, as a Model: what `viot.from_pipeline` makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..kernel import Gaussian
from ..model import Grid, Prediction
from .encoder import TEXT, Encoder, Uneven, count_of, said
from .levels import Levels, levels_of
from .oracle import Oracle, precision_of
from .unet import digest


class Pipeline:
    """A diffusers pipeline as a Model; `viot.from_pipeline` makes it and says what it takes. `prompts` are its P prompts, group g follows prompt g mod P.

    States are float32, whatever the network's precision. `flags` holds what the pipeline's own checker said of the rows decoded last.
    """

    def __init__(self, pipe: Any, *, tiny_vae: Any = None, **call_kwargs: Any) -> None:
        self.pipe, self.tiny_vae = pipe, tiny_vae
        self.levels = levels_of(pipe.scheduler)
        self.oracle = Oracle(pipe, self.levels, {"encode_prompt": Encoder(pipe)} if hasattr(pipe, "encode_prompt") else {})
        self.kernel = Gaussian(fresh=self.levels.fresh)
        self._scheduler = (type(pipe.scheduler), dict(pipe.scheduler.config))
        self.shared, self.own, self.prompts, self.P = _by_prompt(call_kwargs)
        takes = self.oracle.call_takes
        self._count = "batch_size" if not self.own and "batch_size" in takes else count_of(takes)
        self.groups, self.dtype = self.P, torch.float32
        self.flags: dict[str, Tensor] = {}
        start = self._first_start(call_kwargs)
        self.event_shape = tuple(start.shape[1:])
        self._precisions = {self._precision(): start.dtype}
        self._probed = False
        # The watermark leaves the graph, and so do arrays.
        wrapped = hasattr(type(pipe).__call__, "__wrapped__") and type(pipe).__name__ not in ARRAYS
        self.differentiable = wrapped and getattr(pipe, "watermark", None) is None
        self.config = record(pipe, self.levels, call_kwargs)
        self.config |= {"tiny_vae": None if tiny_vae is None else digest(tiny_vae, sums=False)}

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    def grid(self, steps: int) -> Grid:
        """The pipeline's own times, with its shifts and spacings, as noise levels."""
        self._follow_scheduler()
        # Some prepare their latents first, from torch's global state if there is no generator.
        scheduler, times = self.oracle.times(steps, self._call(torch.tensor([0]), torch.Generator().manual_seed(0)))
        try:
            grid, visited = self.levels.grid(scheduler, times), len(times.unique_consecutive())
        except ValueError as error:
            raise ValueError(f"{self.levels.name} can't be walked: {error}. {ADVICE}") from error
        if len(grid) != steps:
            raise ValueError(
                f"{self.levels.name} visits {visited} times where {steps} steps are asked for (two network calls a step, a cut of the first "
                f"times, or times too close to tell apart); ask for {visited} steps if that is meant. {ADVICE}"
            )
        return grid

    def _follow_scheduler(self) -> None:
        """The owner may have exchanged or configured the scheduler since; a run begins with its grid."""
        mark = (type(self.pipe.scheduler), dict(self.pipe.scheduler.config))
        if mark == self._scheduler:
            return
        default = self.kernel == Gaussian(fresh=self.levels.fresh)
        self._scheduler, self._probed = mark, False
        self.levels = self.oracle.levels = levels_of(self.pipe.scheduler)
        self.kernel = Gaussian(fresh=self.levels.fresh) if default else self.kernel
        self.config["scheduler"] = self.levels.record()
        self.__dict__.pop("prior_std", None)

    def prior(self, n: int, generator: torch.Generator, group: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """x_T (n, *event_shape) as the pipeline starts: noise, or its noised image at the first time t."""
        first = torch.zeros(1, dtype=torch.long) if group is None else group[:1].cpu() % self.P
        if self._how != "alone":
            return self.oracle.start(t, self._call(first.expand(n), generator)).float()
        return torch.cat([self.oracle.start(t, self._call(first, generator)) for _ in range(n)]).float()

    @cached_property
    def prior_std(self) -> float | None:
        """The standard deviation of x_T where it is scaled noise and nothing else; None where a run starts from a picture."""
        x = self.prior(1, torch.Generator().manual_seed(0), t=self.grid(2).times[0]).flatten().double().sort().values
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double().sort().values
        # The same numbers in another order (some pack their latents), times a constant.
        std = float((x * noise).sum() / noise.square().sum())
        return std if bool(((x - std * noise).abs() < 0.02 * std).all()) else None

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        like = self._state_dtype()
        if not self._probed:
            self.oracle.probe(x[:1].detach().to(like), t[0], lambda: self._call(group[:1].cpu() % self.P, None))
            self._probed = True
        pieces = [(rows, self.oracle.output(x[rows].to(like), level, call)) for rows, level, call in self._calls(t, group)]
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

    def _first_start(self, call: Mapping[str, Any]) -> Tensor:
        """A start of two rows or more, and with it `_how` rows are asked for.

        "rows"   a prompt for each row: if nothing but texts is given, and their encodings have one shape
        "count"  one prompt at a time, and the number of its samples
        "alone"  one row at a time: some pipelines do not heed the number
        """
        texts = all("prompt" in name for name in self.own) and not any(_seen(value) for n, value in call.items() if "prompt" not in n)
        found = 0
        for how in ["rows"] * (texts and bool(self.own)) + ["count"] * (self._count is not None) + ["alone"]:
            rows = {"rows": torch.arange(max(2, self.P)) % self.P, "count": torch.tensor([0, 0]), "alone": torch.tensor([0])}[how]
            self._how = how
            try:
                start = self.oracle.start(None, self._call(rows, torch.Generator().manual_seed(0)))
            except Uneven:
                continue
            if (found := len(start)) == len(rows):
                return start
        raise TypeError(
            f"{type(self.pipe).__name__} starts {found} samples where it is asked for one: give it one picture, or one for each prompt"
        )

    def _precision(self) -> torch.dtype | None:
        net = next((part for name in ("unet", "transformer") if (part := getattr(self.pipe, name, None)) is not None), None)
        return None if net is None else precision_of(net)

    def _state_dtype(self) -> torch.dtype:
        """The precision in which the pipeline has its states; another one after it was cast."""
        if (now := self._precision()) not in self._precisions:
            self._precisions[now] = self.oracle.start(None, self._call(torch.tensor([0]), torch.Generator().manual_seed(0))).dtype
        return self._precisions[now]

    def _decode(self, x0: Tensor, group: Tensor, **spare: Any) -> Tensor:
        pieces, flags, like = [], torch.zeros(len(x0), dtype=torch.bool), self._state_dtype()
        for rows, _, call in self._calls(None, group):
            images, *more = self.oracle.decoded(x0[rows].to(like), call, **spare)
            images = _as_tensor(images)
            pieces.append((rows, (images / 2 + 0.5).clamp(0, 1) if type(self.pipe).__name__ in SIGNED else images))
            if more and isinstance(more[0], (list, tuple)):
                flags[rows] = torch.tensor([bool(flag) for flag in more[0]])
        checked = getattr(self.pipe, "safety_checker", None) is not None and "safety_checker" not in spare
        self.flags = {"nsfw": flags} if checked else {}
        return _joined(pieces).float()

    def _calls(self, t: Tensor | None, group: Tensor) -> Iterator[tuple[Any, Tensor | None, dict[str, Any]]]:
        """The calls of the pipeline that serve these rows: one per time, and one per prompt where prompts can't share a call."""
        group = group.cpu() % self.P
        apart = [] if self._how == "rows" else [group] if self._how == "count" else [torch.arange(len(group))]
        apart += [] if t is None else [t.cpu()]
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
        if generator is None and "generator" in self.oracle.call_takes:
            # Some draw at every call (a picture's encoding, noise for the decoder): the same draw each time, for every row.
            seeds = [torch.Generator().manual_seed(0) for _ in rows]
            call["generator"] = seeds if n > 1 else seeds[0]
        elif generator is not None:
            call["generator"] = generator
        if self._how == "rows":
            call |= {name: [value[r] for r in rows] if isinstance(value, list) else value[group] for name, value in self.own.items()}
            return call | {name: [value] * n for name, value in call.items() if isinstance(value, str) and TEXT.fullmatch(name)}
        one = rows[0]
        call |= {name: value[one] if isinstance(value, list) else value[one][None] for name, value in self.own.items()}
        return call | ({self._count: n} if self._count is not None and self._how == "count" else {})


ADVICE = "Exchange it, say: pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)"
#: Keywords other than prompts of which a list has one entry per prompt.
LISTS = ("image", "mask_image", "control_image", "depth_map", "video", "image_embeds", "negative_image_embeds", "class_labels")
#: From how many dimensions on a tensor or an array of them has rows.
BATCHED = {"video": 5, "class_labels": 1, "image_embeds": 2, "negative_image_embeds": 2}
#: Pipelines whose "pt" is in [−1, 1], and those that have arrays in its place.
SIGNED = (
    "KandinskyPipeline", "KandinskyInpaintPipeline", "Kandinsky3Pipeline", "KandinskyV22Pipeline", "KandinskyV22ControlnetPipeline",
    "KandinskyV22InpaintPipeline",
)  # fmt: skip
ARRAYS = ("LDMTextToImagePipeline",)


def _by_prompt(call: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str] | None, int]:
    """The keywords that all prompts share, those with an entry for each of P prompts, the prompts, and P."""
    given = dict(call)
    prompts = given.get("prompt")
    prompts = [prompts] if isinstance(prompts, str) else None if prompts is None else list(prompts)
    if prompts is not None and (not prompts or not all(isinstance(p, str) for p in prompts)):
        raise ValueError(f"prompt must be a string or a list of strings, not {call['prompt']!r}")
    if prompts is not None:
        given["prompt"] = prompts
    lists = {n: list(v) for n, v in given.items() if isinstance(v, (list, tuple)) and "prompt" in n}
    seen = {n: list(v) for n, v in given.items() if isinstance(v, (list, tuple)) and n in LISTS and (n != "video" or _many(v))}
    tensors = {n: v for n, v in given.items() if isinstance(v, Tensor) and "prompt" in n}
    embeds = [tensors[n] for n in ("prompt_embeds",) if n in tensors]
    batched = {n: v for n in LISTS if getattr(v := given.get(n), "ndim", 0) >= BATCHED.get(n, 4) and v is not None and len(v) > 1}
    P = max(map(len, [prompts] if prompts else embeds or [*lists.values(), *seen.values(), *batched.values()]), default=1)  # noqa: N806
    own: dict[str, Any] = lists | tensors
    for name, value in own.items():
        if len(value) == 1:
            own[name] = value * P if isinstance(value, list) else value.expand(P, *value.shape[1:])
        elif len(value) != P:
            raise ValueError(f"{name} has {len(value)} entries for {P} prompts; give one for all, or one for each")
    # As many pictures as prompts are one for each; any other number goes with every prompt, as several controls or references do.
    own |= {name: value for name, value in seen.items() if len(value) == P}
    for name, value in batched.items():
        if len(value) != P:
            raise ValueError(f"{name} has {len(value)} rows for {P} prompts; give one for all, or one for each")
    own |= batched
    return {n: v for n, v in given.items() if n not in own}, own, prompts, P


# -- small things ---------------------------------------------------------------------------------------------------------------------


def _joined(pieces: list[tuple[Any, Tensor]]) -> Tensor:
    """The rows of several calls, in their order."""
    if len(pieces) == 1:
        return pieces[0][1]
    order = torch.cat([rows for rows, _ in pieces]).argsort()
    return torch.cat([piece for _, piece in pieces])[order.to(pieces[0][1].device)]


def _as_tensor(images: Any) -> Tensor:
    """What a pipeline calls its pictures, as one tensor (…, C, H, W)."""
    if isinstance(images, (list, tuple)):
        return torch.stack([_as_tensor(image) for image in images])
    # Arrays have their channels last.
    return images if isinstance(images, Tensor) else torch.as_tensor(images).movedim(-1, -3)


def _many(videos: Any) -> bool:
    """A list of videos? One video is a list of frames."""
    return all(isinstance(video, (list, tuple)) or getattr(video, "ndim", 0) > 3 for video in videos)


def _seen(value: Any) -> bool:
    """Is it, or does it hold, something to look at: a tensor, a picture, an array?"""
    return any(_seen(v) for v in value) if isinstance(value, (list, tuple)) else isinstance(value, Tensor) or hasattr(value, "tobytes")


def record(pipe: Any, levels: Levels, call: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the chain: the pipeline, its scheduler, the weights and precisions of its parts, and how it is called."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "pipeline": type(pipe).__name__,
        "name": pipe.config.get("_name_or_path"),
        "scheduler": levels.record(),
        "weights": {name: digest(part, sums=False) for name, part in parts.items()},
        "dtypes": {name: str(precision_of(part)) for name, part in parts.items()},
        "call": {name: said(value) for name, value in call.items()},
    }
