"""Linear inverse problems: operators against explicit matrices, posteriors against their closed form, and measurements from files."""

import math
import re
import sys

import pytest
import torch
from helpers import Pictures, quiet
from PIL import Image

import viot
from viot.models.gaussian import GaussianMixture
from viot.reward import asks_for
from viot.rewards import Deblurring, Inpainting, Likelihood, SuperResolution, as_reward

F64 = torch.float64


def images(*shape, seed=0, dtype=F64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


HOLE = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]])


# -- operators ----------------------------------------------------------------------------------------------------------------------------


def pooling(height, width, factor):
    """(small pixels, pixels), entry by entry."""
    a = torch.zeros(height // factor, width // factor, height, width, dtype=F64)
    for i in range(height):
        for j in range(width):
            a[i // factor, j // factor, i, j] = 1 / factor**2
    return a.flatten(2).flatten(0, 1)


def mirrored(i, n):
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def blurring(height, width, sd):
    """(pixels, pixels), entry by entry, from a kernel in two dimensions."""
    r = math.ceil(3 * sd)
    kernel = torch.tensor([[math.exp(-(u * u + v * v) / (2 * sd * sd)) for v in range(-r, r + 1)] for u in range(-r, r + 1)], dtype=F64)
    kernel /= kernel.sum()
    a = torch.zeros(height, width, height, width, dtype=F64)
    for i in range(height):
        for j in range(width):
            for u in range(-r, r + 1):
                for v in range(-r, r + 1):
                    a[i, j, mirrored(i + u, height), mirrored(j + v, width)] += kernel[u + r, v + r]
    return a.flatten(2).flatten(0, 1)


MATRIX = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), dtype=F64)

#: How a reward is built of y, the matrix of each channel (of the whole image for the stranger's), and the shape of one measurement.
CASES = {
    "inpainting": (lambda y, **k: Inpainting(y, HOLE, **k), torch.diag(HOLE.flatten().double()), (2, 4, 4)),
    "superresolution": (lambda y, **k: SuperResolution(y, 2, **k), pooling(4, 4, 2), (2, 2, 2)),
    "deblurring": (lambda y, **k: Deblurring(y, 0.8, **k), blurring(4, 4, 0.8), (2, 4, 4)),
    "stranger": (lambda y, **k: Likelihood(y, lambda x: x.flatten(1) @ MATRIX.to(x).T, **k), MATRIX, (5,)),
}


def times(a, x):
    """A x by the explicit matrix, (n, numbers)."""
    return x.flatten(1) @ a.T if a.shape[1] == x[0].numel() else (x.flatten(2) @ a.T).flatten(1)


def adjoint(a, gap, x):
    return (gap @ a if a.shape[1] == x[0].numel() else gap.reshape(len(x), 2, -1) @ a).reshape(x.shape)


@pytest.mark.parametrize("case", CASES)
def test_operators_are_their_matrices(case):
    build, a, shape = CASES[case]
    x, other = images(3, 2, 4, 4), images(3, 2, 4, 4, seed=1)
    operator = build(None).operator
    y = operator(x)
    assert y.shape == (3, *shape)
    assert torch.allclose(y.flatten(1), times(a, x), atol=1e-14)
    assert torch.allclose(operator(2 * x - 3 * other), 2 * y - 3 * operator(other), atol=1e-13)
    # ⟨v, A x⟩ = ⟨Aᵀ v, x⟩, Aᵀ by the graph.
    v = images(3, *shape, seed=2)
    x.requires_grad_()
    (back,) = torch.autograd.grad((v * operator(x)).sum(), x)
    assert torch.allclose((v * y).flatten(1).sum(1), (back * x).flatten(1).sum(1))
    assert torch.allclose(back, adjoint(a, v.flatten(1), x))
    assert not torch.allclose(back, adjoint(a.roll(1, 1), v.flatten(1), x)), "another matrix would be noticed"


@pytest.mark.parametrize("case", CASES)
def test_value_gradient_and_residual(case):
    build, a, shape = CASES[case]
    y, x = images(*shape, seed=3), images(4, 2, 4, 4).requires_grad_()
    gap = (build(None).operator(y[None])[0] if case == "inpainting" else y).flatten() - times(a, x).detach()
    reward = build(y, noise=0.3)
    r, residual = reward(x), reward.residual(x)
    assert r.shape == residual.shape == (4,)
    assert torch.allclose(r, -gap.square().sum(1) / (2 * 0.3**2))
    assert torch.allclose(residual, gap.norm(dim=1))
    (slope,) = torch.autograd.grad(r.sum(), x)
    assert torch.allclose(slope, adjoint(a, gap, x) / 0.3**2)
    (slope,) = torch.autograd.grad(residual.sum(), x)
    assert torch.allclose(slope, -adjoint(a, gap, x) / gap.norm(dim=1)[:, None, None, None])
    # At the solution, where a square root has no slope.
    solution = images(1, 2, 4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(build(build(None).operator(solution).detach()).residual(solution).sum(), solution)
    assert torch.equal(slope, torch.zeros_like(slope))


@pytest.mark.parametrize("case", CASES)
def test_contract(case):
    build, _, shape = CASES[case]
    reward = build(images(*shape, seed=3))
    for dtype in (torch.float32, F64):
        viot.testing.check_reward(reward, images(5, 2, 4, 4, dtype=dtype))
    assert reward.differentiable
    assert "group" in asks_for(reward)
    assert isinstance(reward, Likelihood)
    assert isinstance(reward.name, str)


def test_contract_notices_a_reward_of_the_batch():
    """What `test_contract` leans on: an operator that looks at its neighbours fails it."""
    blended = Likelihood(torch.zeros(2, 4, 4), lambda x: x - x.mean(0))
    with pytest.raises(AssertionError, match="by itself"):
        viot.testing.check_reward(blended, images(5, 2, 4, 4))


def test_sums_of_many_pixels_are_float64():
    x, y = (images(1, 3, 256, 256, seed=s, dtype=torch.float32) for s in (0, 1))
    exact = -math.fsum((0.5 * ((y.double() - x.double()) / 0.05).square()).flatten().tolist())
    whole = torch.ones(256, 256)
    assert Inpainting(y, whole)(x).item() == pytest.approx(exact, rel=1e-13)
    short = -0.5 * ((y - x) / 0.05).square().sum()
    assert short.item() != pytest.approx(exact, rel=1e-9), "float32 would be noticed"
    r = Deblurring(y, 2.0)
    assert r(x).dtype == F64
    assert r(x).item() == pytest.approx(r(x.double()).item(), rel=1e-13)


def test_blur_keeps_what_it_must():
    """A constant stays, the kernel is symmetric, sums to one, has odd size, reaches 3 sd, and its variance is sd² up to the cut."""
    for sd in (0.1, 0.5, 1.0, 2.5):
        blur = Deblurring(None, sd).operator
        k = blur.kernel()
        assert len(k) % 2 == 1
        assert len(k) // 2 >= 3 * sd > len(k) // 2 - 1
        assert torch.equal(k, k.flip(0))
        assert k.sum().item() == pytest.approx(1, abs=1e-15)
        if sd >= 1:
            offsets = torch.arange(len(k), dtype=F64) - len(k) // 2
            assert (k * offsets**2).sum().item() == pytest.approx(sd**2, rel=0.03)
        assert torch.allclose(blur(torch.full((1, 1, 9, 10), 0.3)), torch.tensor(0.3).double())
    assert torch.allclose(Deblurring(None, 1e-200).operator(images(1, 1, 4, 4)), images(1, 1, 4, 4)), "no blur at all"


@pytest.mark.parametrize(
    "mask", [HOLE, HOLE.bool(), HOLE[None].double(), HOLE.expand(2, 4, 4), torch.stack([HOLE, torch.ones_like(HOLE)]), HOLE.tolist()]
)
def test_masks(mask):
    """Only the seen pixels enter: the hole may hold anything in y and in x."""
    seen = torch.as_tensor(mask).bool().expand(2, 4, 4)
    x, y = images(3, 2, 4, 4), images(2, 4, 4, seed=1)
    expected = torch.stack([-(y - row)[seen].square().sum() / (2 * 0.05**2) for row in x])
    assert torch.allclose(Inpainting(y, mask)(x), expected)
    unknown = torch.where(seen, y, torch.nan)
    x = torch.where(seen, x, 7.0).requires_grad_()
    r = Inpainting(unknown, mask)(x)
    assert torch.allclose(r, expected)
    (slope,) = torch.autograd.grad(r.sum(), x)
    assert (slope[:, ~seen] == 0).all()
    assert (slope[:, seen] != 0).all()
    with pytest.raises(ValueError, match="NaN or infinite"):
        Inpainting(torch.where(seen, torch.nan, y), mask)


def test_the_factor_is_found_from_the_sizes():
    y = images(2, 3, 4)
    for factor in (1, 2, 3):
        x = images(2, 2, 3 * factor, 4 * factor)
        assert torch.equal(SuperResolution(y)(x), SuperResolution(y, factor)(x))


# -- measurements -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_measurements_have_the_noise_they_say(case):
    build, a, shape = CASES[case]
    clean = images(1, 2, 4, 4).expand(3000, 2, 4, 4)
    problem = build(None, noise=0.2)
    y = problem.measure(clean, torch.Generator().manual_seed(3))
    assert y.shape == (3000, *shape)
    error = y.flatten(1) - times(a, clean)
    if case == "inpainting":
        seen = HOLE.bool().expand(2, 4, 4).flatten()
        assert (y.flatten(1)[:, ~seen] == 0).all()
        error = error[:, seen]
    # Standard errors: σ/√N of the mean, σ/√(2N) of σ.
    root = error.numel() ** 0.5

    def plausible(error, sigma):
        return abs(error.mean()) < 4 * sigma / root and abs(error.std() - sigma) < 4 * sigma / (2**0.5 * root)

    assert plausible(error, 0.2)
    assert not plausible(1.1 * error, 0.2), "another noise would be noticed"
    assert not plausible(error + 0.02, 0.2)
    neighbours = error.T.corrcoef()
    assert (neighbours - torch.eye(len(neighbours))).abs().max() < 5 / 3000**0.5, "noise of one pixel says nothing of another's"


def test_measurements_come_from_their_generator():
    clean, problem = images(2, 3, 8, 8, dtype=torch.float32), SuperResolution(None, 4)
    before = torch.get_rng_state()
    one, again, other, plain = (problem.measure(clean, g and torch.Generator().manual_seed(g)) for g in (5, 5, 6, None))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(plain, problem.measure(clean, torch.Generator().manual_seed(0)))
    assert one.dtype == torch.float32
    assert one.shape == (2, 3, 2, 2)
    assert not problem.measure(clean.requires_grad_()).requires_grad
    # The truth explains its measurement, but for the noise.
    reward = SuperResolution(problem.measure(images(1, 1, 64, 64)), 4)
    assert reward.residual(images(1, 1, 64, 64)).item() == pytest.approx(0.05 * 16, rel=0.2)


# -- groups -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_each_group_has_its_own_measurement(case):
    build, _, shape = CASES[case]
    y, x, group = images(2, *shape, seed=4), images(5, 2, 4, 4), torch.tensor([3, 0, 1, 2, 1])
    reward, singles = build(y), [build(y[p]) for p in range(2)]
    expected = torch.cat([singles[g % 2](x[i : i + 1]) for i, g in enumerate(group.tolist())])
    assert torch.allclose(reward(x, group), expected)
    assert torch.allclose(
        reward.residual(x, group), torch.cat([singles[g % 2].residual(x[i : i + 1]) for i, g in enumerate(group.tolist())])
    )
    assert not torch.allclose(reward(x, group + 1), expected)
    assert torch.allclose(build(y[:1])(x, group), singles[0](x)), "(1, *measurement) is for every row"
    with pytest.raises(ValueError, match="2 measurements: it needs `group`"):
        reward(x)


def test_groups_of_a_run():
    y = images(2, 3, 4, 4, seed=4)
    reward = Inpainting(y, HOLE, noise=0.5)
    p = viot.sample(Pictures(), reward, "vasr", particles=8, groups=range(1, 4), steps=3, progress=False)
    for i, g in enumerate((1, 2, 3)):
        assert torch.allclose(p.rewards[i], Inpainting(y[g % 2], HOLE, noise=0.5)(p.samples[i]))
        assert not torch.allclose(p.rewards[i], Inpainting(y[(g + 1) % 2], HOLE, noise=0.5)(p.samples[i]))


def test_through_the_door():
    """The gradient at x_t of a float32 model, beside another reward, and with measurements that still carry a graph of their own."""
    y = images(2, 3, 4, 4, seed=4).requires_grad_()
    reward = Deblurring(y, 0.5, noise=0.5)
    problem = viot.prepare(Pictures(), viot.rewards.Sum([reward, "brightness"]), "base", particles=4, groups=2, steps=4).problem
    x, group, t = torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 1, 0]), torch.tensor(0.3)
    _, scores, slope = problem.evaluate(x, t, group, score=True, grad=True)
    x.requires_grad_()
    guess = (x * (1 - t**2).sqrt()).sigmoid()
    expected = torch.stack([Deblurring(y[g], 0.5, noise=0.5)(guess[i : i + 1])[0] for i, g in enumerate(group)]) + guess.flatten(1).mean(1)
    assert torch.allclose(scores, expected)
    assert torch.allclose(slope, torch.autograd.grad(expected.sum(), x)[0], rtol=1e-4)
    assert not reward(images(2, 3, 4, 4), group[:2]).requires_grad


# -- posteriors ---------------------------------------------------------------------------------------------------------------------------


class Squares(GaussianMixture):
    """Pictures of 2×2 pixels, Gaussian, with the exact denoiser."""

    def decode(self, x0, group):
        return x0.reshape(-1, 1, 2, 2)


COV = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.3, 0.6, 0.1, 0.2], [0.2, 0.1, 0.4, -0.1], [0.0, 0.2, -0.1, 0.5]], dtype=F64)
SQUARES, STEPS, NOISE = Squares([[0.5, 0.2, 0.8, 0.4]], COV), 8, 0.6
SEEN = torch.tensor([[1, 0], [0, 1]])
ODD = torch.tensor([[1.0, 0.5, -1.0, 0.0], [0.0, 1.0, 1.0, 2.0]], dtype=F64)


def posterior(y, a, noise=NOISE):
    """The chain's own law given y = A x + noise ε, and its Z = E[exp r]."""
    y = y.flatten().double()
    center = torch.linalg.pinv(a) @ y
    # −‖y − A x‖² = −(x − center)ᵀ AᵀA (x − center) − what A cannot reach of y, which is nothing here.
    assert torch.allclose(a @ center, y)
    return SQUARES.chain_law(STEPS).tilt(center, a.T @ a / noise**2)


def off(population, law, log_z):
    """How many standard errors Ẑ and the mean and second moment of each pixel are off, at most, over independent groups."""
    z, x = population.log_z.exp(), population.samples.flatten(2)
    gaps = [z - math.exp(log_z)]
    for f, exact in ((x, law.mean), (x**2, law.cov.diagonal() + law.mean**2)):
        gaps += list((z[:, None] * (population.mean(f) - exact)).T)
    return max(abs(gap.mean() / (gap.std() / len(z) ** 0.5)).item() for gap in gaps)


@pytest.mark.parametrize("method", ["importance", "vasr"])
@pytest.mark.parametrize("case", ["inpainting", "superresolution", "stranger"])
def test_lambda_one_is_the_posterior(case, method):
    seen = torch.diag(SEEN.flatten().double())
    y, a, build = {
        "inpainting": (torch.tensor([[[1.2, 0.0], [0.0, -0.3]]]), seen, lambda y: Inpainting(y, SEEN, NOISE)),
        "superresolution": (torch.tensor([[[1.1]]]), pooling(2, 2, 2), lambda y: SuperResolution(y, 2, NOISE)),
        "stranger": (torch.tensor([0.4, 1.5]), ODD, lambda y: Likelihood(y, lambda x: x.flatten(1) @ ODD.T, NOISE)),
    }[case]
    p = viot.sample(SQUARES, build(y), method, particles=32, groups=1500, steps=STEPS, seed=1, progress=False)
    assert off(p, *posterior(y, a)) < 4
    assert off(p, *posterior(y, a, 1.2 * NOISE)) > 6, "another noise would be noticed"
    assert off(p, *posterior(y * 1.2, a)) > 6, "another measurement too"


def test_lambda_scales_the_noise():
    y = torch.tensor([[[1.2, 0.0], [0.0, -0.3]]])
    seen = torch.diag(SEEN.flatten().double())
    p = viot.sample(SQUARES, Inpainting(y, SEEN, NOISE), "importance", particles=32, groups=1000, steps=STEPS, lam=0.5, progress=False)
    assert off(p, *posterior(y, seen, NOISE / 0.5**0.5)) < 4
    assert off(p, *posterior(y, seen)) > 6


# -- errors -------------------------------------------------------------------------------------------------------------------------------

Y = torch.rand(1, 4, 4)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Likelihood(Y, lambda x: x, noise=0), "noise is the standard deviation .* > 0, not 0"),
        (lambda: Likelihood(Y, lambda x: x, noise=math.inf), "not inf"),
        (lambda: Inpainting(Y, HOLE, noise=-1), "not -1"),
        (lambda: SuperResolution(Y, 2, noise=math.nan), "not nan"),
        (lambda: Deblurring(Y, 1, noise="much"), "not 'much'"),
        (lambda: Likelihood(Y / 0, lambda x: x), "16 numbers that are NaN or infinite, of 16"),
        (lambda: Likelihood(torch.zeros(0), lambda x: x), "empty"),
        (lambda: Likelihood(Y * 1j, lambda x: x), "view_as_real"),
        (lambda: SuperResolution(Y * torch.nan, 2), "NaN"),
        (lambda: Deblurring((Y * 255).byte(), 1), "torch.uint8; pictures are floats .* y / 255"),
        (lambda: Inpainting((Y * 255).byte(), HOLE), "y / 255"),
        (lambda: SuperResolution(Y[0], 2), re.escape("(C, H, W), or (P, C, H, W) for P groups, not (4, 4); a grey one has C = 1: y[None]")),
        (lambda: Inpainting(Y[0], HOLE), "a grey one"),
        (lambda: Inpainting(Y, HOLE * 0.5), r"from 0 to 0.5: mask > 0.5"),
        (lambda: Inpainting(Y, HOLE * 0), "0 everywhere"),
        (lambda: Inpainting(Y, HOLE[None, None]), r"not \(1, 1, 4, 4\)"),
        (lambda: Inpainting(Y, HOLE[:3]), "mask of inpainting is 3×4 pixels, the measurement y is 4×4"),
        (lambda: Inpainting(Y, HOLE.expand(3, 4, 4)), "mask of inpainting has 3 channels, the measurement y is of 1"),
        (lambda: SuperResolution(Y, 0), "whole number ≥ 1, .*not 0"),
        (lambda: SuperResolution(Y, 2.0), "not 2.0"),
        (lambda: SuperResolution(Y, True), "not True"),
        (lambda: SuperResolution(None), "needs the factor"),
        (lambda: Deblurring(Y, 0), "blur is the standard deviation .* in pixels, a finite number > 0, not 0"),
    ],
)
def test_what_cannot_be_built(build, match):
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize(
    ("reward", "x", "match"),
    [
        (
            Likelihood(Y, lambda x: x[..., :3]),
            images(2, 1, 4, 4),
            r"shape \(1, 4, 4\), but A x has \(1, 4, 3\) for images \(1, 4, 4\).*measure",
        ),
        (Likelihood(torch.ones(1), lambda x: x), images(2, 1, 4, 4), "must be equal"),  # would broadcast
        (Likelihood(torch.ones(2, 5), lambda x: x.flatten(1)[:, :1]), images(2, 1, 4, 4), "must be equal"),
        (Likelihood(Y, lambda x: x.sum()), images(2, 1, 4, 4), r"shape \(\) for 2 images; it must return \(n, \*measurement\)"),
        (Likelihood(Y, lambda x: x.tolist()), images(2, 1, 4, 4), "returned list for 2 images"),
        (Likelihood(Y, torch.fft.fft2), images(2, 1, 4, 4), "complex128, not real numbers; return torch.view_as_real"),
        (Likelihood(Y, lambda x: (x > 0.5).long()), images(2, 1, 4, 4), "int64, not real"),
        (Likelihood(None, lambda x: x), images(2, 1, 4, 4), "no measurement: make one with y = reward.measure"),
        (Deblurring(Y, 0.5), ["a", "b"], "a tensor of floats .* not list"),
        (Deblurring(Y, 0.5), torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "not torch.uint8"),
        (Deblurring(Y, 0.5), images(1, 4, 4), r"images\[None\]"),
        (Deblurring(Y, 0.5), images(2, 3, 1, 4, 4), r"\(n, C, H, W\), not a tensor of shape \(2, 3, 1, 4, 4\)"),
        (Inpainting(Y, HOLE), images(2, 1, 8, 8), "mask of inpainting is 4×4 pixels, the model's images are 8×8"),
        (Inpainting(Y, HOLE), images(2, 3, 4, 4), "The model has 3 channels and y has 1: convert y"),
        (Inpainting(Y.expand(3, 4, 4), HOLE.expand(3, 4, 4)), images(2, 1, 4, 4), "3 channels, the model's images are of 1"),
        (SuperResolution(Y, 4), images(2, 1, 6, 8), "6×8 cannot be pooled by 4"),
        (SuperResolution(Y, 2), images(2, 1, 4, 4), "factor 2, a picture y of 4×4 belongs to images of 8×8"),
        (SuperResolution(Y), images(2, 1, 6, 6), "4×4 and the model's images are 6×6"),
        (SuperResolution(Y), images(2, 1, 8, 12), "4×4 and the model's images are 8×12"),
        (SuperResolution(Y), images(2, 1, 2, 2), "4×4 and the model's images are 2×2"),
        (SuperResolution(Y), images(2, 3, 8, 8), "The model has 3 channels"),
        (Deblurring(Y, 0.5), images(2, 1, 8, 8), r"y of deblurring has shape \(1, 4, 4\), but A x has \(1, 8, 8\)"),
        (Deblurring(Y, 2), images(2, 1, 4, 9), "reaches 6 .* images of 4×9 .* must be > 6. Use a blur ≤ 1"),
    ],
)
def test_what_cannot_be_scored(reward, x, match):
    for score in (reward, reward.residual):
        with pytest.raises(ValueError, match=match):
            score(x, torch.zeros(len(x), dtype=torch.long))


def test_the_largest_blur_that_the_error_names_fits():
    assert Deblurring(torch.zeros(1, 4, 9), 1.0)(images(2, 1, 4, 9)).isfinite().all()


# -- files --------------------------------------------------------------------------------------------------------------------------------


def colours(height, width, seed=0):
    """Whole grey levels, (3, H, W)."""
    return (images(3, height, width, seed=seed) * 255).round() / 255


def save(path, pixels, seen=None):
    """A picture file, written pixel by pixel."""
    _, height, width = pixels.shape
    image = Image.new("RGB" if seen is None else "RGBA", (width, height))
    for i in range(height):
        for j in range(width):
            alpha = () if seen is None else (255 if seen[i, j] else 0,)
            image.putpixel((j, i), tuple(round(255 * v) for v in pixels[:, i, j].tolist()) + alpha)
    image.save(path)
    return path


def grey(pixels):
    return (torch.tensor([0.299, 0.587, 0.114], dtype=F64)[:, None, None] * pixels).sum(0, keepdim=True)


@pytest.mark.parametrize("channels", [3, 1])
def test_names_read_files(tmp_path, channels):
    """What a name makes is what the class makes of the same pixels; a grey model sees the grey of a colour picture."""
    pixels, seen = colours(6, 4), images(6, 4, seed=2) > 0.4
    y = pixels if channels == 3 else grey(pixels)
    x, large = images(3, channels, 6, 4, seed=1), images(3, channels, 12, 8, seed=1)
    hole, plain = save(tmp_path / "hole.png", pixels, seen), save(tmp_path / "plain.png", pixels)
    for name, same, at in (
        (f"inpainting:{hole}", Inpainting(y, seen), x),
        (f"superresolution:{plain}", SuperResolution(y, 2), large),
        (f"deblurring:0.7:{plain}", Deblurring(y, 0.7), x),
    ):
        reward = as_reward(name)
        assert reward.name == name
        assert torch.allclose(reward(at), same(at))
        assert not torch.allclose(reward(at), same(at.flip(-1))), "another orientation would be noticed"
        viot.testing.check_reward(name, at)
    assert Inpainting.from_file(hole, noise=0.1).noise == 0.1


def test_files_of_other_kinds(tmp_path):
    """Grey files for colour models, palettes with a transparent colour, half transparency, and photographs that are noted as turned."""
    pixels = colours(4, 6)
    levels = Image.open(save(tmp_path / "rgb.png", pixels)).convert("L")
    levels.save(tmp_path / "grey.png")
    x = images(2, 3, 4, 6, seed=1)
    y = torch.tensor(list(levels.tobytes()), dtype=F64).reshape(1, 4, 6) / 255
    assert torch.allclose(as_reward(f"superresolution:{tmp_path}/grey.png")(x), SuperResolution(y.expand(3, 4, 6), 1)(x))
    assert torch.allclose(as_reward(f"superresolution:{tmp_path}/grey.png")(x[:, :1]), SuperResolution(y, 1)(x[:, :1]))

    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((2, 1), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    seen = torch.ones(4, 6)
    seen[1, 2] = 0
    y = torch.tensor([200, 100, 50], dtype=F64)[:, None, None].expand(3, 4, 6) / 255
    assert torch.allclose(as_reward(f"inpainting:{tmp_path}/palette.png")(x), Inpainting(y, seen)(x))

    soft = Image.open(tmp_path / "rgb.png").convert("RGBA")
    soft.putalpha(Image.frombytes("L", (6, 4), bytes([255] * 12 + [254] * 6 + [0] * 6)))
    soft.save(tmp_path / "soft.png")
    seen = torch.ones(4, 6)
    seen[2:] = 0
    assert torch.allclose(as_reward(f"inpainting:{tmp_path}/soft.png")(x), Inpainting(pixels, seen)(x)), "only the fully opaque is seen"

    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "printed.tif")
    red = torch.tensor([1.0, 0, 0], dtype=F64)[:, None, None].expand(3, 4, 6)
    assert torch.allclose(as_reward(f"superresolution:{tmp_path}/printed.tif")(x), SuperResolution(red, 1)(x))

    sideways = Image.open(tmp_path / "rgb.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "turned.png", exif=exif)
    assert torch.allclose(as_reward(f"superresolution:{tmp_path}/turned.png")(x), SuperResolution(pixels, 1)(x))


def test_files_that_do_not_do(tmp_path):
    """All of it is said when the reward is made, before any network call."""
    pixels = colours(4, 4)
    plain, full = save(tmp_path / "plain.png", pixels), save(tmp_path / "full.png", pixels, torch.ones(4, 4))
    hole, empty = save(tmp_path / "hole.png", pixels, HOLE), save(tmp_path / "empty.png", pixels, torch.zeros(4, 4))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(plain.read_bytes()[:-40])
    Image.new("I;16", (4, 4), 40000).save(tmp_path / "deep.png")
    cases = {
        f"inpainting:{tmp_path}/none.png": (FileNotFoundError, "there is no file .*none.png.*; inpainting:FILE takes a picture"),
        f"deblurring:2:{tmp_path}": (FileNotFoundError, "there is no file"),
        f"inpainting:{plain}": (ValueError, "no transparent pixel, so there is no hole"),
        f"inpainting:{full}": (ValueError, "no transparent pixel"),
        f"inpainting:{empty}": (ValueError, "no opaque pixel"),
        f"superresolution:{hole}": (ValueError, "has transparent pixels, and superresolution:FILE goes by every pixel"),
        f"deblurring:1:{hole}": (ValueError, "has transparent pixels"),
        f"superresolution:{tmp_path}/text.png": (ValueError, "text.png is no picture that can be read"),
        f"superresolution:{tmp_path}/cut.png": (ValueError, "cut.png is no picture that can be read"),
        f"superresolution:{tmp_path}/deep.png": (ValueError, "more than 8 bits each"),
        "inpainting": (ValueError, "not spelled right; write inpainting:FILE.png"),
        "superresolution:": (ValueError, "not spelled right; write superresolution:FILE.png"),
        "deblurring": (ValueError, "not spelled right; write deblurring:2:FILE.png"),
        f"deblurring:{plain}": (ValueError, "write deblurring:2:FILE.png"),
        f"deblurring:0:{plain}": (ValueError, "a blur in pixels > 0"),
        f"deblurring:inf:{plain}": (ValueError, "a blur in pixels > 0"),
        "deblurring:2": (ValueError, "and a picture, not '2'"),
    }
    for name, (kind, match) in cases.items():
        model = Pictures()
        with pytest.raises(kind, match=match):
            viot.sample(model, name, particles=2, steps=2, progress=False)
        assert model.calls == 0
    # What only the samples can tell.
    with pytest.raises(ValueError, match="The model has 4 channels and y has 3"):
        as_reward(f"deblurring:1:{plain}")(images(2, 4, 4, 4))
    with pytest.raises(ValueError, match="4×4 and the model's images are 6×6"):
        as_reward(f"superresolution:{plain}")(images(2, 3, 6, 6))


def test_only_files_need_pillow(tmp_path, monkeypatch):
    hole = save(tmp_path / "hole.png", colours(4, 4), HOLE)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=re.escape("this needs Pillow: pip install 'viot[report]'")):
        as_reward(f"inpainting:{hole}")
    assert Inpainting(Y, HOLE)(images(2, 1, 4, 4)).isfinite().all()


def test_a_home_folder_may_be_written_short(tmp_path, monkeypatch):
    save(tmp_path / "plain.png", colours(4, 4))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert as_reward("superresolution:~/plain.png")(images(2, 3, 4, 4)).isfinite().all()


def test_a_name_steers_a_model(tmp_path):
    """The digits, given the upper half of one: steered runs fit it better than the model by itself, and the record can be run again."""
    pytest.importorskip("safetensors")
    target = viot.sample("digits", "brightness", "base", particles=1, steps=5, seed=3, progress=False).samples[0, 0]
    seen = torch.zeros(28, 28)
    seen[:14] = 1
    name = f"inpainting:{save(tmp_path / 'half.png', target.expand(3, 28, 28), seen)}"
    p, plain = (viot.sample("digits", name, m, particles=8, steps=5, lam=0.01, seed=1, progress=False) for m in ("vasr", "base"))
    assert p.mean().item() > plain.mean().item()
    assert p.config["reward"] == name


def test_an_interrupted_restoration_is_not_gone_on_with_for_another_picture(tmp_path):
    """Likelihoods are recorded by what they measured, not only by name."""
    mask = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    one, other = (Inpainting(torch.full((1, 2, 2), y), mask) for y in (0.2, 0.3))
    assert one.fingerprint() == Inpainting(torch.full((1, 2, 2), 0.2), mask).fingerprint()
    others = (other, Inpainting(torch.full((1, 2, 2), 0.2), mask, noise=0.1), Inpainting(torch.full((1, 2, 2), 0.2), 1 - mask))
    assert len({one.fingerprint(), *(o.fingerprint() for o in others)}) == 4
    model = GaussianMixture([[0.0] * 4])
    model.decode = lambda x0, group: x0.view(-1, 1, 2, 2)
    with quiet():
        viot.sample(model, one, particles=4, steps=4, checkpoint=tmp_path, progress=False)
        with pytest.raises(ValueError, match="another run"):
            viot.sample(model, other, particles=4, steps=4, checkpoint=tmp_path, progress=False)
