"""Any diffusers UNet2DModel with its scheduler's configuration, as a Model: pixel-space diffusion."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from ..model import Grid, Prediction
from ..optional import need
from .levels import Preconditioned, levels_of


def digest(network: torch.nn.Module, sums: bool = True) -> str:
    """A short name of a network's weights, from the shape, some values and (unless it is large) sum of each: retrained is another model."""
    name = hashlib.blake2b(digest_size=6)
    for key, value in network.state_dict().items():
        some = [] if value.is_meta else value.flatten()[:: max(1, value.numel() // 8)][:8].cpu().double().tolist()
        name.update(repr((key, tuple(value.shape), some, round(float(value.float().sum()), 3) if sums else None)).encode())
    return name.hexdigest()


class UNet:
    """A pixel-space diffusion model: x_t (C, H, W) in [−1, 1], samples float32 in [0, 1].

    unet        a diffusers UNet2DModel
    scheduler   a diffusers scheduler: its noise levels, spacing, prediction type and clipping are used, its `step` is not; nor is its
                variance: η = 1 is DDPM's "fixed_small", whatever `variance_type` says
    patch       the network works on patch×patch pixel-unshuffled input: the same diffusion in other coordinates
    compile     torch.compile the network: faster after about a minute
    autocast    run the network in this dtype (torch.bfloat16); the chain stays float32
    """

    differentiable = True
    prior_std = 1.0

    def __init__(self, unet: Any, scheduler: Any, *, patch: int = 1, compile: bool = False, autocast: torch.dtype | None = None) -> None:
        if getattr(unet.config, "sample_size", None) is None:
            raise ValueError("this UNet's config has no sample_size, so the size of its images is unknown; set unet.config.sample_size")
        self.levels = levels_of(scheduler)
        if isinstance(self.levels, Preconditioned):
            raise TypeError(f"{type(scheduler).__name__} rescales what its network reads; give viot.from_pipeline the whole pipeline")
        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        channels = unet.config.in_channels
        self.unet = unet
        self.network = torch.compile(self.unet) if compile else self.unet
        self.scheduler = copy.deepcopy(scheduler)
        self.patch, self.autocast = patch, autocast
        self.event_shape = (channels // patch**2, height * patch, width * patch)
        self.dtype = torch.float32
        self.config = {"scheduler": self.levels.record(), "patch": patch, "weights": digest(unet)}
        self.config |= {"autocast": None if autocast is None else str(autocast), "compile": compile}

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None, patch: int = 1,
        compile: bool = False, autocast: torch.dtype | None = None,
    ) -> UNet:  # fmt: skip
        """From a hub repository or a folder: a pipeline with `unet/` and `scheduler/`, or a bare model with a scheduler beside it."""
        diffusers = need("diffusers", "diffusers")
        name = str(name)
        hub = {} if revision is None else {"revision": revision}
        found = None
        for kinds in ({"subfolder": "unet"}, {"subfolder": "scheduler"}), ({}, {}):
            with contextlib.suppress(OSError, ValueError):
                kind = diffusers.UNet2DModel.load_config(name, **kinds[0], **hub).get("_class_name")
                if kind == "UNet2DModel":
                    found = kinds
                    break
        with contextlib.suppress(OSError, ValueError):
            parts = {k for k in diffusers.DiffusionPipeline.load_config(name, **hub) if not k.startswith("_")}
            if not parts <= {"unet", "scheduler"}:
                raise TypeError(f"{name!r} is a pipeline of {', '.join(sorted(parts))}, not a pixel-space one of unet and scheduler alone")
        if found is None:
            raise ValueError(
                f"{name!r} holds no UNet2DModel that can be read (is the name right, and the network there?). Load its pipeline yourself "
                f"and pass that to viot.sample."
            )
        unet = diffusers.UNet2DModel.from_pretrained(name, low_cpu_mem_usage=False, **found[0], **hub)
        kind = diffusers.DDPMScheduler.load_config(name, **found[1], **hub).get("_class_name", "DDPMScheduler")
        scheduler = getattr(diffusers, kind).from_pretrained(name, **found[1], **hub)
        model = cls(unet.float().to(device), scheduler, patch=patch, compile=compile, autocast=autocast)
        model.config |= {"name": name, "revision": revision}
        return model

    @classmethod
    def embedded(cls, folder: Path, name: str, **settings: Any) -> UNet:
        """A model that comes with the package, as a recipe exported it: its patch stands in training.json."""
        patch = json.loads((folder / "training.json").read_text())["patch"]
        model = cls.from_pretrained(folder, patch=patch, **settings)
        model.config["name"] = name
        return model

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def grid(self, steps: int) -> Grid:
        self.scheduler.set_timesteps(steps)
        return self.levels.grid(self.scheduler, self.scheduler.timesteps)

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, *self.event_shape, generator=generator)

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        inputs = F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x
        cast = torch.autocast(x.device.type, self.autocast) if self.autocast is not None else contextlib.nullcontext()
        with cast:
            out = self.network(inputs.to(self.unet.dtype), t).sample
        # Channels beyond the input's are a learned variance.
        out = out[:, : inputs.shape[1]]
        return self.levels.read(x, F.pixel_shuffle(out, self.patch) if self.patch > 1 else out, t)

    def decode(self, x0: Tensor, group: Tensor) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1).float()
