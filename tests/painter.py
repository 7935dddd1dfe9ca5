"""A text-to-image model small enough for tests: a disc in the colour that the prompt names, on a ground of its own."""

import torch
import torch.nn.functional as F

import viot

COLOURS = {"red": (0.8, -0.7, -0.7), "green": (-0.7, 0.7, -0.7), "blue": (-0.7, -0.6, 0.9), "grey": (0.0, 0.0, 0.0)}


class Painter:
    """Pictures 3 × size × size from states 3 × 12 × 12, normal around a disc: the exact denoiser of that law.

    `strength` of the colour stands for the keywords of a pipeline's call, `seen` is what the constructor was told.
    """

    event_shape, dtype, device = (3, 12, 12), torch.float32, torch.device("cpu")

    def __init__(self, prompt="a red disc", *, negative_prompt=None, strength=1.0, size=24, dtype=None, device=None, checker=False):
        self.prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self.seen = {"negative_prompt": negative_prompt, "strength": strength, "dtype": dtype, "device": device}
        self.config = {"call": {"strength": strength}}
        self.size, self.checker, self.flags = size, checker, {}
        far = (torch.linspace(-1, 1, 12) ** 2)[:, None] + (torch.linspace(-1, 1, 12) ** 2)[None]
        disc = (far < 0.5).float()
        named = [next((c for name, c in COLOURS.items() if name in prompt), (0.5, 0.5, 0.5)) for prompt in self.prompts]
        if negative_prompt:
            strength = -strength
        self.means = torch.stack([strength * torch.tensor(c)[:, None, None] * disc - 0.3 * (1 - disc) for c in named])

    def grid(self, steps):
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        alphas, sigmas = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
        alphas[0], sigmas[0], alphas[-1], sigmas[-1] = 0.0, 1.0, 1.0, 0.0
        return viot.Grid(t[:-1], alphas, sigmas)

    def prior(self, n, generator):
        return torch.randn(n, *self.event_shape, generator=generator)

    def predict(self, x, t, group):
        a = torch.cos(t * torch.pi / 2).float().view(-1, 1, 1, 1)
        s2, v = 1 - a**2, 0.15
        return viot.Prediction((s2 * self.means[group % len(self.means)] + a * v * x) / (a**2 * v + s2))

    def decode(self, x0, group):
        pictures = F.interpolate(x0, size=(self.size, self.size), mode="bicubic", align_corners=False)
        pictures = (pictures / 2 + 0.5).clamp(0, 1)
        if self.checker:
            self.flags = {"nsfw": pictures.flatten(1).mean(1) > 0.37}
        return pictures
