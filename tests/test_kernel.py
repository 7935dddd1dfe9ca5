"""Transition kernels against diffusers' schedulers, hand-derived steps, densities and enumeration; and the UNet model against pipelines.

Statistical tolerances are 5 standard errors at fixed seeds."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from helpers import Tokens, quiet

import viot
from viot.kernel import Categorical, FlowSDE, Gaussian
from viot.model import Coeffs, Prediction
from viot.rng import Draw, Rng

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Given:
    """A Draw that returns what it is given."""

    def __init__(self, noise=None, uniforms=()):
        self.noise, self.uniforms = noise, iter(uniforms)

    def normal(self, shape, dtype=torch.float64, device="cpu"):
        assert self.noise is not None, "this step must not draw"
        assert self.noise.shape == shape
        return self.noise.to(dtype)

    def uniform(self, shape, device="cpu"):
        return next(self.uniforms).expand(shape)


class From:
    """A Draw from one generator."""

    def __init__(self, g):
        self.g = g

    def normal(self, shape, dtype=torch.float64, device="cpu"):
        return torch.randn(shape, generator=self.g, dtype=dtype)

    def uniform(self, shape, device="cpu"):
        return torch.rand(shape, generator=self.g, dtype=torch.float64)


def pair(seed=0, shape=(2, 4, 8, 8)):
    """A state and a network output in float64, whose values float32 holds too: some schedulers pass through it."""
    g = generator(seed)
    return torch.randn(shape, generator=g).double(), torch.randn(shape, generator=g).double()


def noise_of(x, seed, dtype=torch.float64):
    return torch.randn(x.shape, generator=generator(seed), dtype=dtype).double()


# -- the Gaussian kernel is the schedulers' -------------------------------------------------------------------------------------------


def levels(abar_t, abar_s):
    abar_t, abar_s = torch.as_tensor(abar_t).double(), torch.as_tensor(abar_s).double()
    return Coeffs(abar_t.sqrt(), (1 - abar_t).sqrt(), abar_s.sqrt(), (1 - abar_s).sqrt())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("i", [0, 7, 18, 19])
@pytest.mark.parametrize("to_one", [True, False])
def test_ddim(eta, i, to_one):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1)
    scheduler.set_timesteps(20)
    x, out = pair()
    t = scheduler.timesteps[i]
    final = scheduler.final_alpha_cumprod
    c = levels(scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[scheduler.timesteps[i + 1]] if i < 19 else final)
    noise = noise_of(x, 3)
    theirs = scheduler.step(out, t, x, eta=eta, **({"variance_noise": noise} if eta else {})).prev_sample
    x0 = (x - c.sigma_t * out) / c.alpha_t
    for eps in (out, None):
        ours, ratio = Gaussian().step(x, Prediction(x0, eps), c, eta, Given(noise))
        assert (ours - theirs).abs().max() < 1e-6
        assert (ratio == 0).all()
    if eta and i < 19:  # control: another η is another step
        assert (Gaussian().step(x, Prediction(x0), c, eta / 2, Given(noise))[0] - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("i", [0, 7, 18, 19])
def test_ddpm(i):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(**BETAS, clip_sample=False, variance_type="fixed_small")
    scheduler.set_timesteps(20)
    x, out = pair()
    t = scheduler.timesteps[i]
    c = levels(scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[scheduler.timesteps[i + 1]] if i < 19 else 1.0)
    theirs = scheduler.step(out, t, x, generator=generator(3)).prev_sample
    ours, _ = Gaussian().step(x, Prediction((x - c.sigma_t * out) / c.alpha_t), c, 1.0, Given(noise_of(x, 3)))
    assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("i", [0, 7, 18, 19])
def test_euler_ancestral(i):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    scheduler.set_timesteps(20)
    scheduler._init_step_index(scheduler.timesteps[i])
    _, out = pair()
    s_t, s_s = scheduler.sigmas[i].double(), scheduler.sigmas[i + 1].double()
    x = (pair()[0] * s_t).float().double()
    theirs = scheduler.step(out, scheduler.timesteps[i], x, generator=generator(3)).prev_sample
    ours, _ = Gaussian().step(x, Prediction(x - s_t * out), Coeffs(1.0, s_t, 1.0, s_s), 1.0, Given(noise_of(x, 3)))
    # Their state is as large as σ, and passes through float32.
    assert (ours - theirs).abs().max() < 1e-6 * max(1.0, float(s_t))


@pytest.mark.parametrize("i", [0, 7, 18, 19])
@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_matching(i, stochastic):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
    scheduler.set_timesteps(20)
    scheduler._init_step_index(scheduler.timesteps[i])
    x, out = pair()
    s_t, s_s = scheduler.sigmas[i].double(), scheduler.sigmas[i + 1].double()
    theirs = scheduler.step(out, scheduler.timesteps[i], x, generator=generator(3)).prev_sample
    c = Coeffs(1 - s_t, s_t, 1 - s_s, s_s)
    kernel = Gaussian(fresh=True) if stochastic else Gaussian()
    ours, _ = kernel.step(x, Prediction(x - s_t * out), c, 0.0, Given(noise_of(x, 3, torch.float32)))
    # At α = 0 the direction divides by σ = 1; the velocity is x − x0 there, the same thing. float32 holds 1e-7 of values below 5.
    assert (ours - theirs).abs().max() < 1e-6
    if i < 19:
        other = Gaussian() if stochastic else Gaussian(fresh=True)
        assert (other.step(x, Prediction(x - s_t * out), c, 0.0, Given(noise_of(x, 3)))[0] - theirs).abs().max() > 1e-3


def test_flow_sde_is_an_euler_maruyama_step():
    """dx = (v − ½ g² ∇log p) dσ + g dW backwards in σ, with ∇log p = −ε̂ / σ and g² = η² σ / (1 − σ)."""
    x, v = pair()
    s_t, s_s, eta = 0.7, 0.55, 0.7
    x0, eps = x - s_t * v, x + (1 - s_t) * v
    noise = noise_of(x, 3)
    g2 = eta**2 * s_t / (1 - s_t)
    by_hand = x - (s_t - s_s) * (v - 0.5 * g2 * (-eps / s_t)) + math.sqrt(g2 * (s_t - s_s)) * noise
    c = Coeffs(1 - s_t, s_t, 1 - s_s, s_s)
    for prediction in (Prediction(x0), Prediction(x0, eps)):
        ours, ratio = FlowSDE().step(x, prediction, c, eta, Given(noise))
        assert (ours - by_hand).abs().max() < 1e-12
        assert (ratio == 0).all()
    assert (Gaussian().step(x, Prediction(x0), c, eta, Given(noise))[0] - by_hand).abs().max() > 1e-3


def test_flow_sde_at_the_ends():
    x, v = pair()
    first, _ = FlowSDE().step(x, Prediction(x - v), Coeffs(0.0, 1.0, 0.1, 0.9), 0.7, Given(noise_of(x, 3)))
    assert first.isfinite().all()
    # g² at the next level, 0.49 · 0.9 / 0.1, since it is infinite at σ = 1
    g2 = 0.49 * 9
    assert (first - (x * (1 - g2 / 2 * 0.1) - v * 0.1 + math.sqrt(g2 * 0.1) * noise_of(x, 3))).abs().max() < 1e-12
    x0 = x - 0.1 * v
    last, ratio = FlowSDE().step(x, Prediction(x0), Coeffs(0.9, 0.1, 1.0, 0.0), 0.7, Given())
    assert last.isfinite().all()
    assert (ratio == 0).all()
    with pytest.raises(ValueError, match="rectified flows"):
        FlowSDE().step(x, Prediction(x0), Coeffs(0.9, 0.3, 1.0, 0.0), 0.7, Given())


def test_flow_sde_meets_the_gaussian_kernel_as_steps_shrink():
    """Ancestral noise is the diffusion 2 σ / (1 − σ): FlowSDE at η = √2. Their steps agree up to the square of the step."""
    x, v = pair()
    s_t, gaps = 0.5, []
    prediction = Prediction(x - s_t * v)
    for back in (1e-3, 1e-4):
        c = Coeffs(1 - s_t, s_t, 1 - s_t + back, s_t - back)
        (m, s), (mean, std) = FlowSDE().moments(x, prediction, c, math.sqrt(2)), Gaussian().moments(x, prediction, c, 1.0)
        assert abs(float(s**2 / std**2) - 1) < 10 * back
        gaps.append(float((m - mean).abs().max()))
    assert gaps[0] < 1e-4
    assert 80 < gaps[0] / gaps[1] < 120
    assert abs(float(FlowSDE().moments(x, prediction, c, 1.0)[1] ** 2 / std**2) - 0.5) < 1e-2


# -- the Gaussian kernel's own properties ---------------------------------------------------------------------------------------------


C = Coeffs(0.6, 0.8, 0.8, 0.6)


def log_normal(x, mean, std):
    return (-0.5 * ((x - mean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


@pytest.mark.parametrize("kernel", [Gaussian(), Gaussian(fresh=True), FlowSDE()])
def test_log_ratio_is_the_difference_of_densities(kernel):
    c = Coeffs(0.4, 0.6, 0.6, 0.4)
    x, out = pair(shape=(50, 3, 2))
    drift = 0.8 * noise_of(x, 5)
    prediction = Prediction(out)
    mean, std = kernel.moments(x, prediction, c, 0.7)
    new, ratio = kernel.step(x, prediction, c, 0.7, From(generator(1)), drift)
    std = torch.as_tensor(std)
    expected = log_normal(new, mean, std) - log_normal(new, mean + std**2 * drift, std)
    assert ratio.dtype == torch.float64
    assert (ratio - expected).abs().max() < 1e-10
    assert ratio.abs().max() > 0.1


def girsanov(rows=200_000):
    x = torch.zeros(rows, 2, dtype=torch.float64)
    drift = torch.tensor([0.9, -0.6], dtype=torch.float64).expand(rows, 2)
    new, ratio = Gaussian().step(x, Prediction(x), C, 1.0, From(generator(2)), drift)
    return new, ratio, drift


def off(values, expected):
    """|mean − expected| in standard errors."""
    return ((values.mean(0) - expected).abs() / (values.std(0) / len(values) ** 0.5)).max()


def test_weights_of_a_drift_are_girsanovs():
    new, ratio, drift = girsanov()
    assert off(ratio.exp(), 1.0) < 5
    # Weighted by it, the drifted draws have the law of the undrifted ones.
    _, std = Gaussian().moments(new[:1] * 0, Prediction(new[:1] * 0), C, 1.0)
    assert off(ratio.exp()[:, None] * new, 0.0) < 5
    assert off(ratio.exp()[:, None] * new**2, std**2) < 5
    # Controls: unweighted they have another, and the ratio the other way round is no weight.
    assert off(new, 0.0) > 20
    assert off((-ratio).exp(), 1.0) > 5
    assert off(new, std**2 * drift[0]) < 5


def test_log_ratio_keeps_its_precision_in_float32():
    """65536 dimensions, a small drift: from shift and noise the ratio is right; from two log-densities in float32 it would not be."""
    x = torch.randn(2, 65536, generator=generator(0))
    drift = 0.02 * torch.randn(2, 65536, generator=generator(1))
    noise = torch.randn(2, 65536, generator=generator(2))
    mean, std = Gaussian().moments(x, Prediction(0.3 * x), C, 1.0)
    new, ratio = Gaussian().step(x, Prediction(0.3 * x), C, 1.0, Given(noise), drift)
    s = float(Gaussian().moments(x.double(), Prediction(0.3 * x.double()), C, 1.0)[1])
    exact = -((s * drift.double() * noise.double()) + (s * drift.double()) ** 2 / 2).sum(1)
    assert (ratio - exact).abs().max() < 1e-4
    naive = log_normal(new, mean, std) - log_normal(new, mean + std**2 * drift, std)
    assert (naive.double() - exact).abs().max() > 1e-3


def test_eta_per_row():
    x, out = pair(shape=(4, 3))
    drift = noise_of(x, 7)
    etas = [0.0, 0.3, 0.7, 1.0]
    for kernel, c in ((Gaussian(), C), (FlowSDE(), Coeffs(0.4, 0.6, 0.6, 0.4))):
        together, ratio = kernel.step(x, Prediction(out), c, torch.tensor(etas), Given(noise_of(x, 3)), drift)
        for i, eta in enumerate(etas):
            row = slice(i, i + 1)
            alone, r = kernel.step(x[row], Prediction(out[row]), c, eta, Given(noise_of(x, 3)[row]), drift[row])
            assert torch.allclose(together[row], alone, atol=1e-6)
            assert torch.allclose(ratio[row], r, atol=1e-6)
        assert ratio[0] == 0
        assert (ratio[1:] != 0).all()


def test_levels_per_row():
    x, out = pair(shape=(3, 2))
    c = Coeffs(*(torch.tensor(v, dtype=torch.float64) for v in ([0.1, 0.3, 0.6], [0.9, 0.8, 0.7], [0.3, 0.6, 1.0], [0.8, 0.7, 0.0])))
    together, _ = Gaussian().step(x, Prediction(out), c, 1.0, Given(noise_of(x, 3)))
    for i in range(3):
        row = slice(i, i + 1)
        one = Coeffs(*(float(v[i]) for v in c))
        alone, _ = Gaussian().step(x[row], Prediction(out[row]), one, 1.0, Given(noise_of(x, 3)[row]))
        assert torch.allclose(together[row], alone, atol=1e-12)


@pytest.mark.parametrize("kernel", [Gaussian(), Gaussian(fresh=True), FlowSDE()])
def test_without_noise_a_drift_is_ignored(kernel):
    x, out = pair(shape=(4, 3))
    last = Coeffs(0.9, 0.1, 1.0, 0.0)
    plain, _ = kernel.step(x, Prediction(out), last, 1.0, Given())
    pushed, ratio = kernel.step(x, Prediction(out), last, 1.0, Given(), torch.full_like(x, 1e6))
    assert torch.equal(plain, pushed)
    assert (ratio == 0).all()


def test_last_step_returns_x0_and_eta_zero_draws_nothing():
    x, out = pair(shape=(4, 3))
    new, _ = Gaussian().step(x, Prediction(out), Coeffs(0.6, 0.8, 1.0, 0.0), 1.0, Given())
    assert torch.allclose(new, out, atol=1e-15)
    Gaussian().step(x, Prediction(out), C, 0.0, Given())


def test_state_keeps_its_dtype():
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(3, 2, generator=generator(), dtype=dtype)
        for kernel in (Gaussian(), Gaussian(fresh=True), FlowSDE()):
            assert kernel.step(x, Prediction(x), Coeffs(0.4, 0.6, 0.6, 0.4), 1.0, From(generator()))[0].dtype == dtype


def test_gaussian_guesses_are_x0():
    x, out = pair(shape=(4, 3))
    assert torch.equal(Gaussian().guess(x, Prediction(out), None, 5), out[:, None].expand(4, 5, 3))


# -- streams --------------------------------------------------------------------------------------------------------------------------


def test_draws_belong_to_groups():
    def normal(groups, rows_per_group=3):
        return Draw(Rng(1), groups, 4, "propose").normal((len(groups) * rows_per_group, 17), torch.float32)

    among = normal([0, 5, 2])
    assert torch.equal(among[3:6], normal([5]))
    assert torch.equal(among[6:], normal([2]))
    draw = Draw(Rng(1), [0], 4, "propose")
    first, second = draw.uniform((8,)), draw.uniform((8,))
    assert not torch.equal(first, second)
    others = [(Rng(2), [0], 4, "propose", 0), (Rng(1), [1], 4, "propose", 0), (Rng(1), [0], 5, "propose", 0)]
    others += [(Rng(1), [0], 4, "select", 0), (Rng(1), [0], 4, "propose", 1)]
    for other in others:
        assert not torch.equal(Draw(*other).uniform((8,)), first)


# -- categorical ----------------------------------------------------------------------------------------------------------------------

MASK = 4
LOGITS = torch.tensor([[0.0, 1.0, -1.0, 0.5], [2.0, 0.0, 0.0, -3.0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
HALF = Coeffs(0.2, 0.8, 0.5, 0.5)  # reveals a masked position with probability 3/8


def tokens(row, rows):
    x = torch.tensor(row).expand(rows, len(row)).clone()
    logits = LOGITS.expand(rows, 3, 4)
    return x, Prediction(logits.argmax(-1), logits=logits)


N = 60_000


def test_reveal_rate_and_token_probabilities():
    x, prediction = tokens([MASK, 2, MASK], N)
    new, ratio = Categorical(MASK).step(x, prediction, HALF, 1.0, From(generator()))
    assert (new[:, 1] == 2).all()
    assert (ratio == 0).all()
    assert (x == torch.tensor([MASK, 2, MASK])).all()  # the state itself is not touched
    for position in (0, 2):
        shown = new[:, position] != MASK
        assert off(shown.double(), 3 / 8) < 5
        assert off(shown.double(), 0.5) > 20
        drawn = torch.nn.functional.one_hot(new[shown, position], 4).double()
        assert off(drawn, LOGITS[position].softmax(-1)) < 5
        assert off(drawn, LOGITS[1].softmax(-1)) > 20
    # Independently: both are revealed with the product of the probabilities.
    both = ((new[:, 0] != MASK) & (new[:, 2] != MASK)).double()
    assert off(both, (3 / 8) ** 2) < 5


@pytest.mark.parametrize("order", ["random", "confidence", "left"])
def test_last_step_reveals_everything(order):
    x, prediction = tokens([MASK, 2, MASK], 200)
    new, _ = Categorical(MASK, order=order, remask=0.5).step(x, prediction, Coeffs(0.7, 0.3, 1.0, 0.0), 1.0, From(generator()))
    assert (new != MASK).all()
    assert (new[:, 1] == 2).all()


@pytest.mark.parametrize("order", ["random", "first-hitting", "left"])
def test_categorical_log_ratio(order):
    x, prediction = tokens([MASK, 2, MASK], N)
    drift = torch.tensor([[0.5, -1.0, 0.3, 0.0], [9.0, 9.0, 9.0, 9.0], [-0.7, 0.1, 0.0, 0.6]], dtype=torch.float64)
    new, ratio = Categorical(MASK, order=order).step(x, prediction, HALF, 1.0, From(generator()), drift.expand(N, 3, 4))
    log_p, log_q = LOGITS.log_softmax(-1), (LOGITS + drift).log_softmax(-1)
    expected = torch.zeros(N, dtype=torch.float64)
    # One of the two masks is revealed where they are counted: the first of them from the left.
    for position in (0,) if order == "left" else (0, 2):
        shown, token = new[:, position] != MASK, new[:, position].clamp(max=3)
        expected += torch.where(shown, (log_p - log_q)[position][token], 0.0)
        drawn = torch.nn.functional.one_hot(token[shown], 4).double()
        assert off(drawn, log_q[position].exp()) < 5
        assert off(drawn, log_p[position].exp()) > 20
    assert (ratio - expected).abs().max() < 1e-12
    assert off(ratio.exp(), 1.0) < 5
    assert off((-ratio).exp(), 1.0) > 5
    # Weighted, the first token has its undrifted law.
    first = torch.nn.functional.one_hot(new[:, 0], 5).double() * ratio.exp()[:, None]
    share = (new[:, 0] != MASK).double().mean()
    assert off(first[:, :4], share * log_p[0].exp()) < 5


def test_mean_weight_is_one_by_enumeration():
    """Σ over outcomes of the last step of q · p/q = 1 exactly, q from the frequencies the inverse transform gives on a grid of uniforms."""
    drift = torch.tensor([[1.0, -1.0, 0.3, 0.0]] * 3, dtype=torch.float64)
    log_q = (LOGITS + drift).log_softmax(-1)
    edges = torch.cat([torch.zeros(3, 1, dtype=torch.float64), log_q.exp().cumsum(-1)], 1)
    total = 0.0
    for outcome in itertools.product(range(4), repeat=3):
        v = torch.stack([(edges[i, a] + edges[i, a + 1]) / 2 for i, a in enumerate(outcome)])[None]
        x, prediction = tokens([MASK] * 3, 1)
        new, ratio = Categorical(MASK).step(x, prediction, Coeffs(0.5, 0.5, 1.0, 0.0), 1.0, Given(uniforms=[v, v]), drift[None])
        assert new[0].tolist() == list(outcome)
        total += sum(log_q[i, a] for i, a in enumerate(outcome)).exp() * ratio.exp()
    assert abs(float(total) - 1) < 1e-12


def test_confidence_has_no_density():
    x, prediction = tokens([MASK] * 3, 2)
    assert not Categorical(MASK, order="confidence").drifts
    assert Categorical(MASK).drifts
    assert Categorical(MASK, order="left").drifts
    with pytest.raises(ValueError, match="density"):
        Categorical(MASK, order="confidence").step(x, prediction, HALF, 1.0, From(generator()), torch.zeros(2, 3, 4))


def test_orders_choose_where():
    x, prediction = tokens([MASK] * 3, 4000)
    sure = LOGITS.softmax(-1).amax(-1).argsort(descending=True)  # position 1, 0, 2
    assert sure.tolist() == [1, 0, 2]
    for order, ranking in (("confidence", sure), ("left", torch.arange(3))):
        for j, n in enumerate((1, 2, 3)):
            c = Coeffs(j / 3, 1 - j / 3, (j + 1) / 3, 1 - (j + 1) / 3)
            x, _ = Categorical(MASK, order=order).step(x, prediction, c, 1.0, From(generator()))
            assert torch.equal((x != MASK)[:, ranking], (torch.arange(3) < n).expand(4000, 3))
        x, _ = tokens([MASK] * 3, 4000)
    shown = Categorical(MASK).step(x, prediction, HALF, 1.0, From(generator()))[0] != MASK
    assert not torch.equal(shown, torch.arange(3) < shown.sum(-1, keepdim=True))


def test_left_continues_from_what_is_there():
    x, prediction = tokens([1, MASK, MASK], 4000)
    new, _ = Categorical(MASK, order="left").step(x, prediction, HALF, 1.0, From(generator()))
    assert not ((new[:, 1] == MASK) & (new[:, 2] != MASK)).any()


def test_remask():
    x, prediction = tokens([1, MASK, 2], N)
    new, _ = Categorical(MASK, remask=0.25).step(x, prediction, HALF, 1.0, From(generator()))
    for position, token in ((0, 1), (2, 2)):
        assert set(new[:, position].tolist()) == {token, MASK}
        assert off((new[:, position] == MASK).double(), 0.25) < 5
    # α_s = .5 of all tokens are revealed afterwards: .75 of the .2 that were, and 7/16 of the .8 that were not (ReMDM, arXiv 2503.00307).
    assert off((new[:, 1] != MASK).double(), 7 / 16) < 5
    assert off((new[:, 1] != MASK).double(), 3 / 8) > 5
    new, _ = Categorical(MASK).step(x, prediction, HALF, 1.0, From(generator()))
    assert (new[:, [0, 2]] == torch.tensor([1, 2])).all()
    # ϑ is never more than σ_s / α_t, or more would be masked than the next level has.
    new, _ = Categorical(MASK, remask=0.25).step(x, prediction, Coeffs(0.8, 0.2, 0.9, 0.1), 1.0, From(generator()))
    assert off((new[:, [0, 2]] == MASK).double(), 0.125) < 5
    told = replace(prediction, extra={"given": torch.tensor([True, False, False]).expand(N, 3)})
    new, _ = Categorical(MASK, remask=0.25).step(x, told, HALF, 1.0, From(generator()))
    assert (new[:, 0] == 1).all()
    assert off((new[:, 2] == MASK).double(), 0.25) < 5


def test_remasking_keeps_the_shares_of_the_grid():
    x, levels = torch.full((20_000, 6), MASK), torch.linspace(0, 1, 5, dtype=torch.float64)
    seen, g = torch.zeros(20_000, 6, dtype=torch.bool), generator()
    for a, b in itertools.pairwise(levels.tolist()):
        prediction = Prediction(x, logits=torch.zeros(20_000, 6, 4))
        after, _ = Categorical(MASK, remask=0.3).step(x, prediction, Coeffs(a, 1 - a, b, 1 - b), 1.0, From(g))
        seen |= (x != MASK) & (after == MASK)
        assert off((after != MASK).double(), b) < 5 if b < 1 else (after != MASK).all()
        x = after
    assert 0.2 < seen.double().mean() < 0.8


@pytest.mark.parametrize(("length", "steps"), [(7, 7), (7, 3), (5, 8), (12, 5)])
def test_counted_orders_are_even(length, steps):
    x, shown = torch.full((3, length), MASK), []
    x[1, 0] = x[2, [1, 2]] = 1
    levels = torch.linspace(0, 1, steps + 1, dtype=torch.float64).tolist()
    masks = (x == MASK).sum(1)
    g = generator()
    for a, b in itertools.pairwise(levels):
        prediction = Prediction(x, logits=torch.zeros(3, length, 4))
        after, _ = Categorical(MASK, order="first-hitting").step(x, prediction, Coeffs(a, 1 - a, b, 1 - b), 1.0, From(g))
        shown.append((after != x).sum(1))
        x = after
    for row, n in zip(torch.stack(shown, 1), masks.tolist(), strict=True):
        if n >= steps:  # ⌊n/T⌋ or one more, the larger first, for each row's own n masks
            assert row.tolist() == [n // steps + (j < n % steps) for j in range(steps)]
        else:
            assert (row.max(), row.sum()) == (1, n)


def test_fewer_masks_than_steps_appear_all_along():
    x, g, levels = torch.full((4000, 3), MASK), generator(), torch.linspace(0, 1, 13, dtype=torch.float64).tolist()
    shown = []
    for a, b in itertools.pairwise(levels):
        prediction = Prediction(x, logits=torch.zeros(4000, 3, 4))
        after, _ = Categorical(MASK, order="left").step(x, prediction, Coeffs(a, 1 - a, b, 1 - b), 1.0, From(g))
        shown.append((after != x).double().sum(1))
        x = after
    assert (x != MASK).all()
    assert all(off(step, 3 / 12) < 5 for step in shown)


def test_counted_remasking_keeps_the_shares_on_average():
    x, g, levels = torch.full((8000, 6), MASK), generator(), torch.linspace(0, 1, 9, dtype=torch.float64).tolist()
    for a, b in itertools.pairwise(levels):
        prediction = Prediction(x, logits=torch.zeros(8000, 6, 4))
        x, _ = Categorical(MASK, order="first-hitting", remask=0.2).step(x, prediction, Coeffs(a, 1 - a, b, 1 - b), 1.0, From(g))
        assert off((x != MASK).double().mean(1), b) < 5 if b < 1 else (x != MASK).all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_say_nothing_reveal_nothing(broken):
    logits = torch.zeros(2, 3, 4)
    logits[0, 1] = broken
    x = torch.full((2, 3), MASK)
    prediction = Prediction(x, logits=logits)
    end = Coeffs(0.5, 0.5, 1.0, 0.0)
    for drift in (None, torch.ones(2, 3, 4)):
        after, ratio = Categorical(MASK).step(x, prediction, end, 1.0, From(generator()), drift)
        assert (after == MASK).tolist() == [[False, True, False], [False] * 3]
        assert ratio.isfinite().all()
    fills = Categorical(MASK).guess(x, prediction, From(generator()), 5)
    assert (fills == MASK).any(1).tolist() == [[False, True, False], [False] * 3]


def test_tokens_are_drawn_in_double_precision():
    # A token of probability 1e-9, and a uniform number that falls on it: float32 can't tell the end of the first from 1.
    logits = torch.tensor([0.0, -math.log(1e9)]).expand(1, 1, 2)
    x, prediction = torch.full((1, 1), 2), Prediction(torch.full((1, 1), 2), logits=logits)
    for u, token in ((1 - 5e-10, 1), (1 - 5e-9, 0)):
        given = Given(uniforms=[torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), u, dtype=torch.float64)])
        after, _ = Categorical(2).step(x, prediction, Coeffs(0.5, 0.5, 1.0, 0.0), 1.0, given)
        assert int(after) == token


def test_guesses_are_drawn_position_by_position():
    x = torch.full((1, 2), 2)
    fills = Categorical(2).guess(x, Prediction(x, logits=torch.zeros(1, 2, 2)), From(generator()), 4000)[0].double()
    assert abs(float(torch.corrcoef(fills.T)[0, 1])) < 5 / 4000**0.5
    # One fill is drawn like any other; the likeliest is that without a draw.
    tilted = Prediction(x.expand(4000, 2), logits=torch.tensor([0.0, -1.0]).expand(4000, 2, 2))
    one = Categorical(2).guess(x.expand(4000, 2), tilted, From(generator()), 1)
    assert off((one == 1).double().flatten(), 1 / (1 + math.e)) < 5
    assert (Categorical(2).guess(x.expand(4000, 2), tilted) == 0).all()


def test_blocks_come_one_after_the_other():
    # Two blocks of 8 in 6 steps, as LLaDA deals them out: 3, 3, 2 and again.
    x, shown, g = torch.full((4, 16), MASK), [], generator()
    block = (torch.arange(16) // 8).expand(4, 16)
    levels = torch.linspace(0, 1, 7, dtype=torch.float64).tolist()
    for a, b in itertools.pairwise(levels):
        prediction = Prediction(x, logits=torch.randn(4, 16, 4, generator=g), extra={"block": block})
        after, _ = Categorical(MASK, order="confidence").step(x, prediction, Coeffs(a, 1 - a, b, 1 - b), 1.0, From(g))
        shown.append([int((after != x)[:, :8].sum(1).unique()), int((after != x)[:, 8:].sum(1).unique())])
        x = after
    assert shown == [[3, 0], [3, 0], [2, 0], [0, 3], [0, 3], [0, 2]]
    assert (x != MASK).all()


def test_guesses():
    x, prediction = tokens([MASK, 2, MASK], 3)
    kernel = Categorical(MASK)
    assert kernel.guess(x, prediction).tolist() == [[[1, 2, 3]]] * 3
    assert kernel.guess(x, Prediction(prediction.x0)).tolist() == [[[1, 2, 3]]] * 3
    x, prediction = tokens([MASK, 2, MASK], 1)
    many = kernel.guess(x, prediction, From(generator()), N)
    assert many.shape == (1, N, 3)
    assert (many[..., 1] == 2).all()
    for position in (0, 2):
        drawn = torch.nn.functional.one_hot(many[0, :, position], 4).double()
        assert off(drawn, LOGITS[position].softmax(-1)) < 5
    assert off(torch.nn.functional.one_hot(many[0, :, 0], 4).double(), LOGITS[2].softmax(-1)) > 20


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53, None])
@pytest.mark.parametrize("allowed", [(0,), (1,), (3,), (1, 2), (0, 3)])
def test_impossible_tokens_are_never_drawn(u, allowed):
    logits = torch.full((500, 3, 4), -torch.inf, dtype=torch.float64)
    logits[..., list(allowed)] = torch.randn(500, 3, len(allowed), generator=generator(), dtype=torch.float64)
    x = torch.full((500, 3), MASK)
    prediction = Prediction(logits.argmax(-1), logits=logits)

    def draw():
        return From(generator()) if u is None else Given(uniforms=[torch.tensor(u, dtype=torch.float64)] * 3)

    new, _ = Categorical(MASK).step(x, prediction, Coeffs(0.5, 0.5, 1.0, 0.0), 1.0, draw())
    assert set(new.flatten().tolist()) <= set(allowed)
    guesses = Categorical(MASK).guess(x, prediction, draw(), 4)
    assert set(guesses.flatten().tolist()) <= set(allowed)
    # A drift cannot make the impossible possible.
    drift = torch.zeros(500, 3, 4).fill_(50.0)
    new, ratio = Categorical(MASK).step(x, prediction, Coeffs(0.5, 0.5, 1.0, 0.0), 1.0, draw(), drift)
    assert set(new.flatten().tolist()) <= set(allowed)
    assert ratio.isfinite().all()


def test_categorical_settings():
    with pytest.raises(ValueError, match="order must be"):
        Categorical(MASK, order="right")
    with pytest.raises(ValueError, match="remask"):
        Categorical(MASK, remask=1.0)
    x, prediction = tokens([MASK] * 3, 2)
    with pytest.raises(ValueError, match="logits"):
        Categorical(MASK).step(x, Prediction(prediction.x0), HALF, 1.0, From(generator()))


def test_token_chain_draws_the_models_law():
    """The whole unsteered chain in one step per position: with T = 1 the law is the product of the first predictions."""
    model = Tokens()
    with quiet():
        population = viot.sample(model, lambda s: torch.zeros(len(s)), "base", particles=20_000, steps=1, progress=False)
    logits = model.predict(model.prior(1, None), None, None).logits[0]
    drawn = torch.nn.functional.one_hot(population.x0[0], 4).double()
    for position in range(3):
        assert off(drawn[:, position], logits[position].softmax(-1)) < 5


# -- the UNet model against diffusers -------------------------------------------------------------------------------------------------


def tiny_unet(channels=3, size=8, out=None, seed=0):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers.UNet2DModel(
            sample_size=size, in_channels=channels, out_channels=out or channels, layers_per_block=1, block_out_channels=(8, 8),
            norm_num_groups=4, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ).eval()  # fmt: skip


def scheduler_of(kind, **settings):
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, kind)(**settings)


def unet_model(scheduler, **settings):
    from viot.models.unet import UNet

    return UNet(tiny_unet(), scheduler, **settings)


def walk(model, x, steps, eta, draw):
    """The unsteered chain from x; the state after every step."""
    grid, out = model.grid(steps), []
    with torch.no_grad():
        for j in range(steps):
            prediction = model.predict(x, grid.times[j].expand(len(x)), torch.zeros(len(x), dtype=torch.long))
            x, _ = Gaussian().step(x, prediction, grid.coeffs(j), eta, draw)
            out.append(x)
    return out


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [True, False])
def test_unet_steps_are_the_schedulers(kind, prediction_type, clip):
    """x0 and the whole next state, at each step of a run, for the network's own output."""
    scheduler = scheduler_of(kind, prediction_type=prediction_type, clip_sample=clip)
    model = unet_model(scheduler)
    scheduler.set_timesteps(6)
    x = torch.randn(2, 3, 8, 8, generator=generator(1))
    group = torch.zeros(2, dtype=torch.long)
    grid = model.grid(6)
    assert torch.equal(grid.times, scheduler.timesteps)
    clipped = False
    for j, t in enumerate(scheduler.timesteps):
        with torch.no_grad():
            out = model.unet(x, t).sample
            prediction = model.predict(x, grid.times[j].expand(2), group)
        ddim = kind == "DDIMScheduler"
        theirs = (
            scheduler.step(out, t, x, eta=0.6, variance_noise=noise_of(x, j).float())
            if ddim
            else scheduler.step(out, t, x, generator=generator(j))
        )
        noise = noise_of(x, j).float() if ddim else torch.randn(x.shape, generator=generator(j))
        scale = max(1.0, float(theirs.pred_original_sample.abs().max()))
        assert (prediction.x0 - theirs.pred_original_sample).abs().max() < 1e-5 * scale
        ours, _ = Gaussian().step(x, prediction, grid.coeffs(j), 0.6 if ddim else 1.0, Given(noise))
        # Unclipped, x0 at the noisiest step is (x − σε)/α with α = 0.006: their float32 and ours differ in its last digits.
        assert (ours - theirs.prev_sample).abs().max() < 2e-5 * max(1.0, float(theirs.prev_sample.abs().max()))
        clipped |= bool((prediction.x0.abs() == 1).any())
        assert (prediction.eps is None) == (clip and not ddim)
        x = theirs.prev_sample
    assert clipped == clip


def test_ddim_and_ddpm_clip_differently():
    """After clipping, DDIM keeps the network's ε and DDPM does not: with one rule for both, one of the two would be wrong."""
    x = torch.randn(2, 3, 8, 8, generator=generator(1))
    models = [unet_model(scheduler_of(kind, clip_sample=True)) for kind in ("DDIMScheduler", "DDPMScheduler")]
    a, b = (walk(m, x, 2, 0.0, Given())[0] for m in models)
    assert (a - b).abs().max() > 1e-2


def base_from(model, x, steps, eta):
    """The `base` method from given starting noise."""
    from viot.methods import Base

    model.prior = lambda n, generator: x
    with quiet():
        return viot.sample(model, "brightness", Base(eta=eta), particles=len(x), steps=steps, progress=False)


@pytest.mark.parametrize("clip", [True, False])
def test_base_reproduces_the_ddim_pipeline(clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = scheduler_of("DDIMScheduler", clip_sample=clip)
    pipe = diffusers.DDIMPipeline(tiny_unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    theirs = torch.from_numpy(pipe(batch_size=3, generator=generator(5), num_inference_steps=7, eta=0.0, output_type="np").images).permute(
        0, 3, 1, 2
    )
    x = torch.randn(3, 3, 8, 8, generator=generator(5))
    population = base_from(unet_model(scheduler), x, 7, 0.0)
    assert population.modality == "images"
    assert (population.samples[0] - theirs).abs().max() < 1e-5
    # Controls: another η, and other noise.
    assert (base_from(unet_model(scheduler), x, 7, 1.0).samples[0] - theirs).abs().max() > 1e-2
    assert (base_from(unet_model(scheduler), x.flip(0), 7, 0.0).samples[0] - theirs).abs().max() > 1e-2


def test_the_chain_reproduces_the_ddpm_pipeline():
    diffusers = pytest.importorskip("diffusers")
    scheduler = scheduler_of("DDPMScheduler")
    pipe = diffusers.DDPMPipeline(tiny_unet(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    theirs = torch.from_numpy(pipe(batch_size=3, generator=generator(5), num_inference_steps=7, output_type="np").images).permute(
        0, 3, 1, 2
    )
    g = generator(5)
    x = torch.randn(3, 3, 8, 8, generator=g)
    model = unet_model(scheduler)
    ours = walk(model, x, 7, 1.0, From(g))[-1]
    assert (model.decode(ours, None) - theirs).abs().max() < 1e-5
    assert (model.decode(walk(model, x, 7, 1.0, From(generator(6)))[-1], None) - theirs).abs().max() > 1e-2


def test_pipelines_are_models():
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.DDIMPipeline(tiny_unet(), scheduler_of("DDIMScheduler"))
    with quiet():
        population = viot.sample(pipe, "brightness", "vasr", particles=4, steps=4, lam=5.0, progress=False)
    assert population.samples.shape == (1, 4, 3, 8, 8)
    assert population.config["model"]["config"]["scheduler"]["type"] == "DDIMScheduler"

    class Latent:  # like LDMPipeline, whose states are not pixels
        unet, scheduler, components = pipe.unet, pipe.scheduler, {"unet": None, "scheduler": None, "vqvae": None}

    with pytest.raises(TypeError, match="can't be steered: it has no scheduler"):
        viot.sample(Latent(), "brightness")


def test_patch_is_the_same_diffusion_in_other_coordinates():
    from viot.models.unet import UNet

    unet = tiny_unet(channels=12, size=4)
    plain, patched = UNet(unet, scheduler_of("DDIMScheduler")), UNet(unet, scheduler_of("DDIMScheduler"), patch=2)
    assert plain.event_shape == (12, 4, 4)
    assert patched.event_shape == (3, 8, 8)
    x = torch.randn(2, 3, 8, 8, generator=generator())
    group, t = torch.zeros(2, dtype=torch.long), torch.tensor([400, 20])
    with torch.no_grad():
        a = patched.predict(x, t, group)
        b = plain.predict(torch.nn.functional.pixel_unshuffle(x, 2), t, group)
    assert torch.allclose(a.x0, torch.nn.functional.pixel_shuffle(b.x0, 2), atol=1e-6)
    assert torch.allclose(a.eps, torch.nn.functional.pixel_shuffle(b.eps, 2), atol=1e-6)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_unet_keeps_the_contract(kind):
    from viot.models.unet import UNet
    from viot.testing import check_model

    check_model(unet_model(scheduler_of(kind)), steps=4)
    check_model(UNet(tiny_unet(channels=12, size=4), scheduler_of(kind), patch=2), steps=3)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("to_one", [True, False])
def test_grid_ends_where_the_scheduler_does(offset, to_one):
    scheduler = scheduler_of("DDIMScheduler", steps_offset=offset, set_alpha_to_one=to_one)
    grid = unet_model(scheduler).grid(10)
    assert grid.times.tolist() == [100 * i + offset for i in range(9, -1, -1)]
    assert (grid.sigmas[-1] == 0) == to_one
    assert torch.allclose(grid.alphas**2 + grid.sigmas**2, torch.ones(11, dtype=torch.float64))


def test_learned_variance_channels_are_dropped():
    from viot.models.unet import UNet

    model = UNet(tiny_unet(out=6), scheduler_of("DDPMScheduler", variance_type="learned_range"))
    x = torch.randn(2, 3, 8, 8, generator=generator())
    with torch.no_grad():
        assert model.predict(x, torch.tensor([5, 5]), torch.zeros(2)).x0.shape == x.shape


def test_schedulers_that_do_not_fit():
    from viot.models.unet import UNet

    with pytest.raises(TypeError, match=r"noise levels of ScoreSdeVeScheduler.*DDIMScheduler"):
        UNet(tiny_unet(), scheduler_of("ScoreSdeVeScheduler"))
    with pytest.raises(ValueError, match="thresholding"):
        UNet(tiny_unet(), scheduler_of("DDIMScheduler", thresholding=True))
