"""Class-conditional diffusion transformers (DiT, arXiv 2212.09748), whose pipeline takes no latents: the network is called directly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..model import Grid, Prediction
from .diffusers import record
from .levels import levels_of


class DiT:
    """A DiTPipeline as a Model: x_t (4, h, w) latents, samples float32 (3, H, W) in [0, 1]; one group per class label.

    class_labels    an ImageNet class (index or name), or one for each of P groups
    guidance_scale  of classifier-free guidance; 1 turns it off
    """

    differentiable = True

    def __init__(self, pipe: Any, *, class_labels: int | str | Sequence[int | str], guidance_scale: float = 4.0) -> None:
        labels = [class_labels] if isinstance(class_labels, (int, str)) else list(class_labels)
        names = {index: name for name, index in (getattr(pipe, "labels", None) or {}).items()}
        self.pipe, self.guidance_scale = pipe, float(guidance_scale)
        self.labels = torch.tensor([pipe.get_label_ids(label)[0] if isinstance(label, str) else label for label in labels])
        classes = pipe.transformer.config.num_embeds_ada_norm
        if not bool(((self.labels >= 0) & (self.labels < classes)).all()):
            raise ValueError(f"class_labels must be in 0 … {classes - 1}, not {labels}")
        self.nothing = classes
        self.prompts = [names.get(int(label), f"class {int(label)}") for label in self.labels]
        self.levels = levels_of(pipe.scheduler)
        net = pipe.transformer
        self.event_shape = (net.config.in_channels, net.config.sample_size, net.config.sample_size)
        self.dtype = torch.float32
        self.config = record(pipe, self.levels, {"class_labels": self.labels.tolist(), "guidance_scale": self.guidance_scale})

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    def grid(self, steps: int) -> Grid:
        scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        scheduler.set_timesteps(steps)
        return self.levels.grid(scheduler, scheduler.timesteps)

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, *self.event_shape, generator=generator)

    def predict(self, x: Tensor, t: Tensor, group: Tensor) -> Prediction:
        net = self.pipe.transformer
        labels = self.labels.to(x.device)[group.to(x.device) % len(self.labels)]
        inputs, times = self.levels.scaled(x, t).to(net.dtype), t.to(x.device)
        if self.guidance_scale > 1:
            inputs, times = torch.cat([inputs, inputs]), torch.cat([times, times])
            labels = torch.cat([labels, torch.full_like(labels, self.nothing)])
        out = net(inputs, timestep=times, class_labels=labels).sample
        out = out[:, : x.shape[1]]
        if self.guidance_scale > 1:
            given, nothing = out.chunk(2)
            out = nothing + self.guidance_scale * (given - nothing)
        return self.levels.read(x, out, t)

    def decode(self, x0: Tensor, group: Tensor) -> Tensor:
        vae = self.pipe.vae
        image = vae.decode(x0.to(vae.dtype) / vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1).float()
