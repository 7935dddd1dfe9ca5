"""Restoring pictures from measurements: the Gaussian log-likelihood of y = A x + noise · ε as a reward.

With λ = 1 the target ∝ p(x) exp(r(x)) is the posterior p(x | y). Another λ is another noise: noise / √λ.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from ..kernel import double
from ..optional import need

#: Red, green and blue in a grey picture, as Pillow and JPEG weigh them (ITU-R 601).
GREY = (0.299, 0.587, 0.114)


class Likelihood:
    """r(x) = −‖y − A x‖² / (2 noise²), (n,) float64: log p(y | x) up to its constant, of the images x (n, C, H, W) in [0, 1].

    y          (*measurement) or (1, *measurement) for every row, or (P, *measurement), one per group: group g goes by y[g mod P].
               None where there is no measurement yet, for `measure` to make one
    operator   A, any differentiable function of the images -> (n, *measurement), each row from its own image
    noise      standard deviation of the measurement's error, > 0, in the units of y
    """

    differentiable = True

    def __init__(self, y: Any, operator: Callable[[Tensor], Tensor], noise: float = 0.05, name: str = "likelihood") -> None:
        self.name, self.operator = name, operator
        self.noise = _positive(noise, "noise", "the standard deviation of the measurement's error")
        self.y = None if y is None else _finite(y, name)
        # y is a colour picture from a file, of which a grey model sees the grey.
        self._converts = False

    def __call__(self, samples: Tensor, group: Tensor | None = None) -> Tensor:
        return _back(-0.5 * (self._gap(samples, group) / self.noise).square().sum(1), samples.device)

    def residual(self, samples: Tensor, group: Tensor | None = None) -> Tensor:
        """‖y − A x‖ of each row, (n,), graph intact. About noise · √(numbers measured) where the measurement is explained and no better."""
        return _back(torch.linalg.vector_norm(self._gap(samples, group), dim=1), samples.device)

    def fingerprint(self) -> str:
        """What tells two likelihoods apart: a hash of y, the noise, and the operator's settings."""
        digest = hashlib.blake2b(f"{self.name}/{self.noise}".encode(), digest_size=6)
        for value in (self.y, *getattr(self.operator, "__dict__", {}).values()):
            digest.update(_bytes(value))
        return digest.hexdigest()

    @torch.no_grad()
    def measure(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """y = A x + noise · ε of clean images (n, C, H, W): (n, *measurement), one per image. Without a generator, the ε of seed 0."""
        rng = torch.Generator().manual_seed(0) if generator is None else generator
        clean = self._measured(images)
        epsilon = torch.randn(clean.shape, generator=rng, device=rng.device, dtype=_precise(rng.device))
        noisy = double(clean) + self.noise * epsilon.to(double(clean))
        return noisy.to(images.device, torch.promote_types(images.dtype, torch.float32))

    def _gap(self, samples: Tensor, group: Tensor | None) -> Tensor:
        """y − A x, (n, numbers measured), float64."""
        y = self.y
        if y is None:
            raise ValueError(
                f"the reward {self.name} has no measurement: make one with y = reward.measure(images), and build it with that y"
            )
        measured = self._measured(samples)
        if self._converts and measured.ndim == 4 and measured.shape[1] == 1:
            y = torch.tensordot(torch.tensor(GREY, dtype=y.dtype), y, dims=([0], [-3])).unsqueeze(-3)
        several = y.ndim == measured.ndim
        if y.shape[several:] != measured.shape[1:]:
            raise ValueError(self._mismatch(tuple(y.shape), tuple(measured.shape[1:]), samples))
        wide = double(measured)
        if several and len(y) > 1:
            if group is None:
                raise ValueError(f"the reward {self.name} has {len(y)} measurements: it needs `group`, the group of each row, to choose by")
            # Each measurement travels to the accelerator once, not once per row.
            used, rows = (group.to(y.device) % len(y)).unique(return_inverse=True)
            y = y[used].to(wide.device)[rows.to(wide.device)]
        # The last dimension makes measurements of a single number rows too.
        return (y.to(wide.device) - wide)[..., None].flatten(1)

    def _measured(self, images: Tensor) -> Tensor:
        """A x, checked."""
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"the reward {self.name} measures images, a tensor of floats (n, C, H, W) in [0, 1], not {got}")
        measured = self.operator(images)
        if not isinstance(measured, Tensor) or measured.shape[:1] != images.shape[:1]:
            got = f"shape {tuple(measured.shape)}" if isinstance(measured, Tensor) else type(measured).__name__
            raise ValueError(f"the operator of {self.name} returned {got} for {len(images)} images; it must return (n, *measurement)")
        if not measured.is_floating_point():
            hint = "; return torch.view_as_real(…) of it, and measure y so" if measured.is_complex() else ""
            raise ValueError(f"the operator of {self.name} returned {measured.dtype}, not real numbers{hint}")
        return measured

    def _mismatch(self, y: tuple[int, ...], measured: tuple[int, ...], images: Tensor) -> str:
        hint = self._hint(y, measured) or "Make y with reward.measure(images) of such images, or use a model of the size that was measured."
        return (
            f"the measurement y of {self.name} has shape {y}, but A x has {measured} for images {tuple(images.shape[1:])}. "
            f"They must be equal, or y may have one dimension more in front, one measurement per group. {hint}"
        )

    def _hint(self, y: tuple[int, ...], measured: tuple[int, ...]) -> str:
        """What to try where shapes differ, or nothing."""
        return ""


class _Restoration(Likelihood):
    """A likelihood whose measurement is itself a picture: y is (C, h, w) or (P, C, h, w), floats in [0, 1]."""

    def __init__(self, y: Any, operator: Callable[[Tensor], Tensor], noise: float, name: str) -> None:
        if y is not None:
            y = torch.as_tensor(y)
            if not y.is_floating_point():
                raise ValueError(f"the measurement y of {name} holds {y.dtype}; pictures are floats in [0, 1]: y / 255, mostly")
            if y.ndim not in (3, 4) or not y.numel():
                raise ValueError(
                    f"the measurement y of {name} is a picture (C, H, W), or (P, C, H, W) for P groups, not {tuple(y.shape)}; "
                    f"a grey one has C = 1: y[None]"
                )
        super().__init__(y, operator, noise, name)

    def _hint(self, y: tuple[int, ...], measured: tuple[int, ...]) -> str:
        if y[-2:] == measured[-2:] and y[-3] != measured[-3]:
            return f"The model has {measured[-3]} channels and y has {y[-3]}: convert y."
        return ""

    def _named(self, name: str) -> Self:
        self.name, self._converts = name, True
        return self


class Inpainting(_Restoration):
    """A x = the pixels that are seen. What y holds in the hole, be it NaN, does not count.

    mask   (H, W), (1, H, W) or (C, H, W): 1 = seen, 0 = hole
    """

    def __init__(self, y: Any, mask: Any, noise: float = 0.05) -> None:
        self.mask = _mask(mask)
        if y is not None and (y := torch.as_tensor(y).detach().cpu()).is_floating_point() and y.ndim in (3, 4):
            _covers(self.mask, y, "the measurement y is")
            y = torch.where(self.mask, y, 0.0)
        super().__init__(y, Hole(self.mask), noise, "inpainting")

    def measure(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The pixels that are seen, with noise, and zero in the hole; otherwise as `Likelihood.measure`."""
        y = super().measure(images, generator)
        return torch.where(self.mask.to(y.device), y, 0.0)

    @classmethod
    def from_file(cls, path: str | Path, noise: float = 0.05) -> Self:
        """From a picture with transparency, of which the fully opaque pixels are seen. Needs Pillow."""
        pixels, opaque = _read(path, "inpainting:FILE")
        if opaque.all() or not opaque.any():
            found = "no transparent pixel, so there is no hole to fill" if opaque.all() else "no opaque pixel, so there is nothing to go by"
            raise ValueError(f"{path} has {found}; erase what is to be filled to transparency, and save it as PNG")
        return cls(pixels, opaque, noise)._named(f"inpainting:{path}")


class SuperResolution(_Restoration):
    """A x = the means of squares of factor × factor pixels; y is the small picture.

    factor   a whole number ≥ 1; None finds it from the sizes of y and of the images
    """

    def __init__(self, y: Any, factor: int | None = None, noise: float = 0.05) -> None:
        if factor is None and y is None:
            raise ValueError("SuperResolution without a measurement y needs the factor: SuperResolution(None, 4)")
        self.factor = factor = None if factor is None else _whole(factor)
        super().__init__(y, self._pool if factor is None else Pool(factor), noise, "superresolution")

    def _pool(self, images: Tensor) -> Tensor:
        assert self.y is not None
        (high, wide), (height, width) = self.y.shape[-2:], images.shape[-2:]
        factor = height // high
        if factor < 1 or (factor * high, factor * wide) != (height, width):
            raise ValueError(
                f"the small picture is {high}×{wide} and the model's images are {height}×{width}: these must be the same whole number of "
                f"times as large in both directions; crop or resize the small picture, to a half of the images' size for instance"
            )
        return Pool(factor)(images)

    def _hint(self, y: tuple[int, ...], measured: tuple[int, ...]) -> str:
        if self.factor and y[-2:] != measured[-2:]:
            high, wide = (self.factor * side for side in y[-2:])
            return f"With the factor {self.factor}, a picture y of {y[-2]}×{y[-1]} belongs to images of {high}×{wide}."
        return super()._hint(y, measured)

    @classmethod
    def from_file(cls, path: str | Path, noise: float = 0.05) -> Self:
        """From the small picture; the factor is found from the images' size. Needs Pillow."""
        return cls(_opaque(path, "superresolution:FILE"), None, noise)._named(f"superresolution:{path}")


class Deblurring(_Restoration):
    """A x = each channel of x convolved with a Gaussian, mirrored at the border (without repeating the edge); y is as large as x.

    blur   standard deviation of the Gaussian in pixels, > 0. It is cut at 3 of them and normalised; images must reach further than that
    """

    def __init__(self, y: Any, blur: float, noise: float = 0.05) -> None:
        self.blur = _positive(blur, "blur", "the standard deviation of the Gaussian in pixels")
        super().__init__(y, Blur(self.blur), noise, "deblurring")

    @classmethod
    def from_file(cls, path: str | Path, blur: float, noise: float = 0.05) -> Self:
        """From the blurred picture. Needs Pillow."""
        return cls(_opaque(path, "deblurring:SD:FILE"), blur, noise)._named(f"deblurring:{blur:g}:{path}")


# -- operators ------------------------------------------------------------------------------------------------------------------------

# They compute in float64: a convolution in float32 loses three digits where the accelerator takes it for TF32, and a likelihood sums the
# squares of what is left.


@dataclass(frozen=True, eq=False)
class Hole:
    """Zero where not `seen`, (H, W) or (1 or C, H, W), booleans."""

    seen: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        x = _images(images, "inpainting")
        _covers(self.seen, x, "the model's images are")
        # Not a product: what a hole holds must not count, not even as NaN.
        return torch.where(self.seen.to(x.device), x, 0.0)


@dataclass(frozen=True)
class Pool:
    """Means of squares of factor × factor pixels."""

    factor: int

    def __call__(self, images: Tensor) -> Tensor:
        x = _images(images, "superresolution")
        height, width = x.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"images of {height}×{width} cannot be pooled by {self.factor}: both sides must be multiples of it")
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class Blur:
    """Convolution of each channel with a Gaussian of standard deviation `sd` pixels, normalised on −⌈3 sd⌉ … ⌈3 sd⌉, reflect padding."""

    sd: float

    @property
    def radius(self) -> int:
        return math.ceil(3 * self.sd)

    def kernel(self) -> Tensor:
        """(2 radius + 1,) float64: the Gaussian is its product with itself."""
        weights = torch.exp(-0.5 * (torch.arange(-self.radius, self.radius + 1, dtype=torch.float64) / self.sd).square())
        return weights / weights.sum()

    def __call__(self, images: Tensor) -> Tensor:
        x = _images(images, "deblurring")
        (height, width), r = x.shape[-2:], self.radius
        if min(height, width) <= r:
            raise ValueError(
                f"a blur of {self.sd:g} pixels reaches {r} of them, more than images of {height}×{width} can reflect at their border: both "
                f"sides must be > {r}. Use a blur ≤ {max(0, min(height, width) - 1) / 3:.3g}, or a model of larger images"
            )
        k = self.kernel().to(x.device)
        flat = F.pad(x.flatten(0, 1)[:, None], (r, r, r, r), mode="reflect")
        return F.conv2d(F.conv2d(flat, k[None, None, None, :]), k[None, None, :, None]).reshape(x.shape)


def _images(images: Tensor, who: str) -> Tensor:
    """Images (n, C, H, W), float64, or an error."""
    if images.ndim != 4:
        hint = "; one picture is a batch of one: images[None]" if images.ndim == 3 else ""
        raise ValueError(f"{who} measures images (n, C, H, W), not a tensor of shape {tuple(images.shape)}{hint}")
    return double(images)


# -- numbers --------------------------------------------------------------------------------------------------------------------------


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _back(value: Tensor, device: torch.device) -> Tensor:
    return value.to(device, _precise(device)) if device != value.device else value


def _positive(value: Any, name: str, meaning: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {meaning}, a finite number > 0, not {value!r}")
    return number


def _whole(factor: Any) -> int:
    try:
        number = index(factor)
    except TypeError:
        number = 0
    if number < 1 or isinstance(factor, bool):
        raise ValueError(f"factor is a whole number ≥ 1, the side of the squares that become one pixel, not {factor!r}")
    return number


def _finite(y: Any, name: str) -> Tensor:
    """The measurement as float64 on the CPU, from where it travels to the samples."""
    y = torch.as_tensor(y).detach().cpu()
    if y.is_complex():
        raise ValueError(f"the measurement y of {name} is complex; give torch.view_as_real(y), and an operator that returns the same")
    if not y.numel():
        raise ValueError(f"the measurement y of {name} is empty, of shape {tuple(y.shape)}")
    if bad := int((~y.isfinite()).sum()):
        raise ValueError(
            f"the measurement y of {name} holds {bad} numbers that are NaN or infinite, of {y.numel()}; leave what was not "
            f"measured out of y and of A x (pixels: the mask of Inpainting)"
        )
    return y.double()


def _mask(mask: Any) -> Tensor:
    """Booleans, (H, W) or (C, H, W)."""
    mask = torch.as_tensor(mask).detach().cpu()
    if mask.ndim not in (2, 3) or not mask.numel():
        raise ValueError(f"mask is (H, W), (1, H, W) or (C, H, W), the same for every image, not {tuple(mask.shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"mask holds 1 where a pixel is seen and 0 in the hole; this one goes from {mask.min():g} to {mask.max():g}: mask > 0.5"
        )
    if not bool(mask.any()):
        raise ValueError("mask is 0 everywhere: 1 is a pixel that is seen, and at least one must be (is it inverted? 1 - mask)")
    return mask.bool()


def _covers(seen: Tensor, images: Tensor, whose: str) -> None:
    size, channels = tuple(seen.shape[-2:]), seen.shape[0] if seen.ndim == 3 else 1
    if size != tuple(images.shape[-2:]):
        high, wide = images.shape[-2:]
        raise ValueError(
            f"the mask of inpainting is {size[0]}×{size[1]} pixels, {whose} {high}×{wide}: resize the measured picture and its mask to the "
            f"model's size"
        )
    if channels not in (1, images.shape[-3]):
        raise ValueError(f"the mask of inpainting has {channels} channels, {whose} of {images.shape[-3]}; a mask (H, W) is for all of them")


# -- files ----------------------------------------------------------------------------------------------------------------------------


def _read(path: str | Path, spelling: str) -> tuple[Tensor, Tensor]:
    """A picture of 8 bits: its colours (3, H, W) float64 in [0, 1], and where it is fully opaque, (H, W) booleans."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; {spelling} takes a picture, a PNG for instance")
    pil, ops = need("PIL.Image", "report"), need("PIL.ImageOps", "report")
    try:
        with pil.open(file) as opened:
            # What a camera held sideways is turned by its own note.
            image = ops.exif_transpose(opened)
            mode = image.mode
            # Pillow would clip more than 8 bits to white.
            rgba = None if mode[0] in "IF" else image.convert("RGBA")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} is no picture that can be read ({error}); {spelling} takes one, a PNG for instance") from error
    if rgba is None:
        raise ValueError(f"{file} has pixels of kind {mode}, more than 8 bits each; save it with 8 bits per channel")
    # Through bytes: torch reads pictures only where NumPy is installed, which viot does not ask for.
    pixels = torch.frombuffer(bytearray(rgba.tobytes()), dtype=torch.uint8).reshape(rgba.height, rgba.width, 4).permute(2, 0, 1)
    return pixels[:3].double() / 255, pixels[3] == 255


def _opaque(path: str | Path, spelling: str) -> Tensor:
    """The colours of a picture without transparency."""
    pixels, opaque = _read(path, spelling)
    if not opaque.all():
        raise ValueError(
            f"{path} has transparent pixels, and {spelling} goes by every pixel; save it without (inpainting:FILE fills holes)"
        )
    return pixels


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    plain = value.cpu().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size())
