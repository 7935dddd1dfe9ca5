"""URGE: paths under any drift, weighed by their density. Exact at any step size, and every term of the weight is needed."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from exact import MODEL, REWARD, STEPS, Truth, is_exact, law, run, z_scores
from helpers import quiet
from test_exact import MIXTURE, PULL, mixture_law
from test_methods import FKDBefore
from torch import Tensor

import viot
from viot import weights
from viot.guidance import Guidance
from viot.kernel import Categorical, FlowSDE, Gaussian, shifted
from viot.methods import URGE, VASR, Importance
from viot.model import Coeffs, Prediction
from viot.models.gaussian import GaussianMixture, MixtureLaw
from viot.particles import State
from viot.rng import Rng

# -- drifts -------------------------------------------------------------------------------------------------------------------------------


def good(x, t, prediction, coeffs):
    """The gradient of r(x̂0(x_t)) in closed form: E[x0 | x_t] of MODEL has the slope α v / (α² v + σ²)."""
    a, s = coeffs.alpha_t, coeffs.sigma_t
    return -2 * (prediction.x0 - 1.5) * (0.6 * a / (0.6 * a * a + s * s))


def bad(x, t, prediction):
    return -1.5 * torch.sin(3 * x)


def steps_up(x, t, prediction):
    """Bounded, and not the gradient of anything smooth."""
    return 0.8 * torch.sign(x - 0.2)


DRIFTS = {"none": None, "good": good, "bad": bad}
SELECTIONS = {
    "at every step": {"ess_threshold": None, "resampling": "multinomial"},
    "at every third": {"schedule": 3, "ess_threshold": None},
    "by ess": {},
}


# -- U1: the density ratio is a martingale ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drift", [bad, steps_up, torch.tanh], ids=["sin", "sign", "tanh"])
@pytest.mark.parametrize(("steps", "eta"), [(2, 1.0), (5, 0.5), (20, 1.0)])
def test_u1_the_mean_of_the_ratio_is_one(drift, steps, eta):
    """E[exp(Girsanov part)] = 1 at any step size: at λ = 0 it is all there is."""
    guide = drift if drift is not torch.tanh else lambda x, t, prediction: torch.tanh(x + prediction.x0)
    for method in (URGE(schedule=(), guide=guide, eta=eta), URGE(guide=guide, eta=eta, ess_threshold=0.95)):
        population = run(method, lam=0.0, groups=400, steps=steps)
        z = population.log_z.exp()
        assert abs(z.mean() - 1) < 4 * z.std() / len(z) ** 0.5
        # There was a ratio to speak of.
        assert z.std() > 0.01


# -- U2: the law of the chain, whatever the drift, the reward path and the selection -------------------------------------------------------


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("path", ["value", "scaled", "terminal"])
@pytest.mark.parametrize("drift", DRIFTS)
def test_u2_unbiased_at_sixteen_particles(drift, path, selection):
    method = URGE(guide=DRIFTS[drift], path=path, **SELECTIONS[selection])
    assert method.exact
    population = run(method, groups=400)
    assert population.grad_rows == 0
    assert z_scores(population, law()).abs().max() < 4.0
    if path == "terminal":
        assert len(population.ancestors) == 0
    elif selection != "by ess":
        assert population.trace["deaths"].sum() > 0, "a test of selection must select"


@pytest.mark.parametrize("lam", [0.3, 3.0, -0.2])
@pytest.mark.parametrize("drift", ["good", "bad"])
def test_u2_strengths_other_than_one(drift, lam):
    assert is_exact(run(URGE(guide=DRIFTS[drift]), lam=lam, groups=700), law(lam=lam))


def test_u2_other_noise_and_other_values():
    for method in (
        URGE(guide=bad, eta=0.5),
        URGE(guide=good, eta=0.7, path="scaled"),
        URGE(guide=bad, value=lambda problem, state: -state.x[..., 0].abs()),
        URGE(guide=good, value="rollout"),
    ):
        assert is_exact(run(method, groups=600), law(eta=method.eta))


@pytest.mark.parametrize("mean", ["score", "x0"])
@pytest.mark.parametrize("more", [{}, {"clip": None, "path": "terminal"}, {"guide": bad, "eta": 0.6}], ids=["", "unclipped", "and a guide"])
def test_u2_guidance_by_the_gradient_of_the_reward(mean, more):
    for guidance in (0.6, -0.3):
        method = URGE(guidance=guidance, mean=mean, **more)
        population = run(method, groups=600)
        assert population.grad_rows == 600 * 16 * (STEPS - 1)
        assert z_scores(population, law(eta=method.eta)).abs().max() < 4.0


@pytest.mark.parametrize(
    "method",
    [URGE(), URGE(guide=bad), URGE(guide=bad, path="scaled", ess_threshold=None), URGE(guide=bad, guidance=0.3, eta=0.7, mean="x0")],
    ids=["no drift", "bad", "bad, scaled", "bad and gradient"],
)
def test_u2_mixture(method):
    """Against quadrature of the same kernel."""
    assert is_exact(run(method, model=MIXTURE, reward=PULL, steps=10, groups=600), mixture_law(method.eta))


def test_u2_hard_constraints():
    """A reward of −inf: the target is cut off, not the paths on the way there."""

    def allowed(x):
        return torch.where(x[:, 0] < 0.6, 0.5 * x[:, 0], -torch.inf)

    tilted, log_z = MODEL.chain_density(STEPS, 1.0, points=2401).tilt(lambda x: allowed(x[:, None]))
    truth = Truth(math.exp(log_z), tilted.mean, tilted.expect(lambda x: x**2))
    for guide in (None, lambda x, t, prediction: 0.7 * (0.2 - prediction.x0)):
        assert is_exact(run(URGE(guide=guide), reward=allowed, groups=600), truth)


class LinearFlow:
    """A rectified flow of N(mean, var) data, x_σ = (1 − σ) x0 + σ ε, with the stochastic step of Flow-GRPO."""

    event_shape, dtype, device, kernel = (1,), torch.float64, torch.device("cpu"), FlowSDE()
    mean, var = 0.4, 0.5

    def grid(self, steps):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return viot.Grid(sigmas[:-1], 1 - sigmas, sigmas)

    def prior(self, n, generator):
        return torch.randn(n, 1, generator=generator, dtype=self.dtype)

    def gain(self, s):
        return (1 - s) * self.var / ((1 - s) ** 2 * self.var + s**2)

    def predict(self, x, t, group):
        return viot.Prediction(self.mean + self.gain(t)[:, None] * (x - (1 - t[:, None]) * self.mean))

    def decode(self, x0, group):
        return x0

    def chain_law(self, steps, eta):
        """m' = A m + B, V' = A² V + std², from the published formula in terms of the velocity ε − x0; the last step has no noise."""
        m, v, levels = 0.0, 1.0, self.grid(steps).sigmas.tolist()
        for j, (s, to) in enumerate(itertools.pairwise(levels)):
            ds, g2 = to - s, 0.0
            if j < steps - 1:
                level = to if s == 1 else s
                g2 = eta**2 * level / (1 - level)
            # x0 = p x + q;  velocity = (x − x0) / σ
            p, q = self.gain(s), self.mean - self.gain(s) * (1 - s) * self.mean
            along = (1 + g2 * (1 - s) / (2 * s)) * ds
            a, b = 1 + g2 / (2 * s) * ds + along * (1 - p) / s, -along * q / s
            m, v = a * m + b, a * a * v - g2 * ds
        return MixtureLaw(torch.ones(1).double(), torch.tensor([[m]]).double(), torch.tensor([[[v]]]).double())


def flow_law(eta, lam=1.0):
    tilted, log_z = LinearFlow().chain_law(10, eta).tilt(1.5, 2.0, lam)
    return Truth(math.exp(log_z), tilted.mean.item(), tilted.cov.item() + tilted.mean.item() ** 2)


FLOWS = [
    URGE(eta=0.7),
    URGE(eta=0.7, guide=bad),
    URGE(eta=1.0, guide=bad, path="scaled"),
    URGE(eta=0.7, guidance=0.5, mean="x0", guide=bad),
]


@pytest.mark.parametrize("method", FLOWS, ids=["no drift", "bad", "bad, scaled", "bad and gradient"])
def test_u2_flow_matching(method):
    assert is_exact(run(method, model=LinearFlow(), steps=10, groups=600), flow_law(method.eta))


def test_u2_flow_matching_has_a_law_of_its_own():
    """The check sees the chain: another η, and the Gaussian kernel of the same flow, are told apart."""
    population = run(URGE(eta=0.7, guide=bad), model=LinearFlow(), steps=10)
    assert z_scores(population, flow_law(0.3)).abs().max() > 6.0
    other = LinearFlow()
    other.kernel = Gaussian()
    assert z_scores(run(URGE(eta=0.7, guide=bad), model=other, steps=10), flow_law(0.7)).abs().max() > 6.0


# -- U3: negative controls ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoRatio(URGE):
    """The biased "gradient FK": a drift that is not paid for."""

    def propose(self, problem, state):
        return super().propose(problem, state).but(log_w=state.log_w)


@dataclass(frozen=True)
class WrongSign(URGE):
    """log q − log p."""

    def propose(self, problem, state):
        after = super().propose(problem, state)
        return after.but(log_w=2 * state.log_w - after.log_w)


@dataclass(frozen=True)
class NoInitialWeight(URGE):
    """Differences of the reward along the path, without exp(r(x_T, T)) at its start."""

    def weigh(self, problem, state):
        after = super().weigh(problem, state)
        return after.but(log_w=state.log_w) if state.step == 0 else after


@pytest.mark.parametrize("kind", [NoRatio, WrongSign])
@pytest.mark.parametrize("more", [{"guide": good}, {"guide": bad}, {"guidance": 0.6}], ids=["good", "bad", "gradient"])
def test_u3_a_drift_must_be_paid_for(kind, more):
    for path in ("value", "terminal"):
        assert z_scores(run(kind(path=path, **more), groups=1000), law())[1:].abs().max() > 6.0
    assert z_scores(run(kind(**more), model=LinearFlow(), steps=10, groups=1000), flow_law(1.0))[1:].abs().max() > 6.0


def steep(problem, state):
    """A reward path that is steep at the very start, where the states are pure noise."""
    return 1.2 * state.x[..., 0]


def test_u3_the_initial_weight_is_needed():
    """At η = .5 the finished sample remembers where it started; with η = 1 this model forgets it, and only Ẑ would be wrong."""
    for more in ({}, {"guide": bad}, {"guide": bad, "ess_threshold": None}):
        assert is_exact(run(URGE(path="value", value=steep, eta=0.5, **more), groups=800), law(eta=0.5))
        assert z_scores(run(NoInitialWeight(path="value", value=steep, eta=0.5, **more), groups=800), law(eta=0.5))[1:].abs().max() > 6.0
    # A scaled path is 0 there and needs none.
    right, same = (run(kind(value=steep, eta=0.5, path="scaled"), groups=20) for kind in (URGE, NoInitialWeight))
    assert torch.equal(right.log_weights, same.log_weights)


# -- U4: a good drift evens the weights, a bad one wears them out ---------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"schedule": (), "path": "value"}, {"path": "terminal"}], ids=["never selects", "terminal"])
def test_u4_good_drifts_raise_the_ess(more):
    share = {}
    for name, guide in DRIFTS.items():
        population = run(URGE(guide=guide, **more), groups=700)
        assert is_exact(population, law())
        share[name] = (weights.ess(population.log_weights) / 16).mean().item()
    assert share["good"] > share["none"] + 0.1
    assert share["bad"] < share["none"] - 0.1


# -- U5: zero variance --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Optimal(Guidance):
    """The drift of Doob's transform of a linear reward, and the start that belongs to it. `slopes` is its c_k, one for each level."""

    slopes: tuple[Tensor, ...]
    start: bool = True

    def prior(self, problem, state):
        return (self.slopes[0].expand_as(state.x), None) if self.start else None

    def drift(self, problem, state, eta):
        return self.slopes[state.step + 1].expand_as(state.x)


def solved(model, steps, eta, c):
    """c_k and b_k of E[exp(c·x_0) | x_k] = exp(c_k·x + b_k), from the chain x' = A_k x + B_k + std_k ξ, whose last step has no noise."""
    grid, d = model.grid(steps), len(c)
    points = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()
    slopes, levels = [c], [0.0]
    for j in reversed(range(steps)):
        prediction = model.predict(points, grid.times[j].expand(d + 1), torch.zeros(d + 1))
        mean, std = model.kernel.moments(points, prediction, grid.coeffs(j), eta if j < steps - 1 else 0.0)
        b, a = mean[0], (mean[1:] - mean[0]).T
        levels.insert(0, float(levels[0] + slopes[0] @ b + std**2 * (slopes[0] @ slopes[0]) / 2))
        slopes.insert(0, a.T @ slopes[0])
    return tuple(slopes), tuple(levels)


@pytest.mark.parametrize("steps", [2, 3, 8, 30])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_u5_the_optimal_drift_has_constant_weights(steps, eta):
    model = GaussianMixture([[0.5, -0.5]], [[[1.0, 0.6], [0.6, 0.8]]])
    lam, c = 1.7, torch.tensor([0.8, -1.1], dtype=torch.float64)
    slopes, levels = solved(model, steps, eta, lam * c)

    def value(problem, state):
        return (state.x @ slopes[state.step] + levels[state.step]) / lam

    def log_weights(kind=URGE, **changes):
        guide = Optimal(slopes, **changes)
        shared = {"model": model, "reward": lambda x: x @ c, "steps": steps, "lam": lam, "groups": 3}
        return run(kind(path="value", guide=guide, value=value, eta=eta), **shared)

    population, known = log_weights(), model.chain_law(steps, eta)
    exact = float(lam * c @ known.mean + lam**2 * c @ known.cov @ c / 2)
    assert (population.log_weights - population.log_weights[0, 0]).abs().max() < 1e-10
    assert (population.log_z - exact).abs().max() < 1e-10
    # The path's values are not needed for that, with the drift alone the weights are even at the end.
    shared = {"model": model, "reward": lambda x: x @ c, "steps": steps, "lam": lam, "groups": 3}
    assert (run(URGE(guide=Optimal(slopes), path="terminal", eta=eta), **shared).log_z - exact).abs().max() < 1e-10
    # From the unmoved start, and without the ratio, they are not. (At η = 1 this model forgets its start in the first step.)
    assert (log_weights(start=False).log_z - exact).abs().max() > 1e-3 or eta == 1
    assert (log_weights(NoRatio).log_z - exact).abs().max() > 1e-3
    if eta == 1:
        assert slopes[0].abs().max() < 1e-12


# -- a start and a spread of one's own ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wide(Guidance):
    """A drift, a spread that depends on the state, and a start that is moved and widened."""

    def prior(self, problem, state):
        return torch.full_like(state.x, 0.4), torch.full_like(state.x, 1.15)

    def drift(self, problem, state, eta):
        return 0.5 * torch.cos(state.x)

    def spread(self, problem, state):
        return 1.05 + 0.1 * torch.sin(2 * state.x)


@dataclass(frozen=True)
class NoStart(URGE):
    """Starts where the guidance says, and does not weigh for it."""

    def prepare(self, problem, state):
        return super().prepare(problem, state).but(log_w=torch.zeros_like(state.log_w))


def test_starts_and_spreads_are_paid_for():
    for more in ({}, {"ess_threshold": None}, {"path": "terminal"}):
        for eta in (0.5, 1.0):
            assert is_exact(run(URGE(guide=Wide(), eta=eta, **more), groups=600), law(eta=eta))
    assert z_scores(run(NoStart(guide=Wide(), eta=0.5), groups=800), law(eta=0.5))[1:].abs().max() > 6.0
    assert z_scores(run(NoRatio(guide=Wide(), eta=0.5), groups=800), law(eta=0.5))[1:].abs().max() > 6.0


# -- U6: the rate of weight is that of the path-particle equivalence -------------------------------------------------------------------------


@pytest.mark.parametrize("drift", ["none", "the reward's gradient", "another"])
def test_u6_the_rate_of_weight_given_the_end_of_a_step(drift):
    """(E[w | X_t] − 1)/h, for X_s drawn from the weighted law of its time, against the closed form of theorem 3.3.

    Time runs from noise to data, u = 1 − τ. With the kernel's schedule α = cos(πτ/2) the SDE is V² = π tan(πτ/2), v = V² x/2 + V² ∇log p.
    """
    tau, n, mu, var, center = 0.5, 1_600_000, 0.3, 0.6, 1.0
    edges = torch.tensor([-0.6, -0.2, 0.2, 0.6, 1.0, 1.4], dtype=torch.float64)

    def p(tau):
        a, s = math.cos(math.pi * tau / 2), math.sin(math.pi * tau / 2)
        return a, s, a * mu, a * a * var + s * s

    def q(tau):
        return 1.3 - 0.5 * tau

    def r(x, tau):
        return -q(tau) / 2 * (x - center) ** 2

    def g(x, tau):
        """∇G and its Laplacian."""
        if drift == "none":
            return 0 * x, 0 * x
        return (torch.sin(2 * x), 2 * torch.cos(2 * x)) if drift == "another" else (-q(tau) * (x - center), 0 * x - q(tau))

    def expected(x):
        _, _, m, v = p(tau)
        noise2, score, slope, (dg, lap) = math.pi * math.tan(math.pi * tau / 2), -(x - m) / v, -q(tau) * (x - center), g(x, tau)
        along = -0.25 * (x - center) ** 2 + noise2 * (x / 2 + score) * slope
        return along - noise2 / 2 * (-q(tau) + slope**2 + 2 * score * slope) + noise2 * (lap + dg * (score + slope))

    def binned(h, paid=True):
        """Mean of rate − expected in every bin, its standard error, and the mean of expected."""
        (a_t, s_t, m, v), (a_s, s_s, _, _) = p(tau + h), p(tau)
        # q_s ∝ p_s exp(r(·, s)) is Gaussian.
        spread = 1 / (1 / v + q(tau + h))
        draw = viot.rng.Draw(Rng(7), (0,), round(1e4 * h), "rate", 0)
        x = draw.normal((n, 1), torch.float64, torch.device("cpu"))
        x = spread * (m / v + q(tau + h) * center) + spread**0.5 * x
        prediction = Prediction(mu + a_t * var / v * (x - m))
        to, ratio = Gaussian().step(x, prediction, Coeffs(a_t, s_t, a_s, s_s), 1.0, draw, g(x, tau + h)[0])
        rate = torch.expm1((r(to, tau) - r(x, tau + h))[:, 0] + ratio * paid) / h
        which, known = torch.bucketize(to[:, 0], edges) - 1, expected(to[:, 0])
        rows = []
        for i in range(len(edges) - 1):
            gap, here = (rate - known)[which == i], known[which == i]
            rows.append([gap.mean(), gap.std() / len(gap) ** 0.5, here.mean()])
        return torch.tensor(rows).T

    # The limit h → 0: what is left of order h goes in 2 f(h/2) − f(h).
    (half, half_error, known), (whole, whole_error, _) = binned(0.0025), binned(0.005)
    gap, error = 2 * half - whole, (4 * half_error**2 + whole_error**2).sqrt()
    assert (gap.abs() < 4 * error + 0.03).all(), (gap, error)
    # The rates differ between the bins by far more than they may be off, and without the density ratio they are others.
    assert known.max() - known.min() > 10 * error.max()
    if drift != "none":
        unpaid, unpaid_error, _ = binned(0.0025, paid=False)
        assert (unpaid.abs() > 10 * unpaid_error).any()


# -- U7: the kernel's ratio is that of the densities ---------------------------------------------------------------------------------------


def log_normal(x, mean, std):
    return (-0.5 * ((x - mean) / std) ** 2 - torch.log(torch.as_tensor(std)) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def draws(seed=0, rows_of=(0,)):
    return viot.rng.Draw(Rng(seed), rows_of, 3, "test", 0)


@pytest.mark.parametrize("kernel", [Gaussian(), FlowSDE(), Gaussian(fresh=True)], ids=repr)
@pytest.mark.parametrize("spread", [False, True])
def test_u7_gaussian_ratio_is_that_of_the_densities(kernel, spread):
    gen = torch.Generator().manual_seed(1)
    x, x0, drift, wide = (torch.randn(50, 2, 3, generator=gen, dtype=torch.float64) for _ in range(4))
    wide = (0.3 * wide).exp() if spread else None
    c = Coeffs(0.4, 0.6, 0.7, 0.3)
    mean, std = kernel.moments(x, Prediction(x0), c, 0.8)
    to, ratio = kernel.step(x, Prediction(x0), c, 0.8, draws(), drift, wide)
    density = log_normal(to, mean, std.expand_as(mean))
    density = density - log_normal(to, mean + std**2 * drift, std * (torch.ones_like(x) if wide is None else wide))
    assert (ratio - density).abs().max() < 1e-10
    assert ratio.std() > 0.1


def test_u7_shifted_noise():
    gen = torch.Generator().manual_seed(2)
    noise, shift, wide = (torch.randn(40, 5, generator=gen, dtype=torch.float64) for _ in range(3))
    for spread in (None, wide.abs() + 0.2):
        moved, ratio = shifted(noise, shift, spread)
        std = torch.ones_like(shift) if spread is None else spread
        assert torch.allclose(moved, shift + std * noise)
        assert (ratio - log_normal(moved, 0.0, torch.ones_like(std)) + log_normal(moved, shift, std)).abs().max() < 1e-10


@pytest.mark.parametrize("order", ["random", "left"])
def test_u7_tokens_ratio_is_that_of_the_probabilities(order):
    gen = torch.Generator().manual_seed(3)
    n, length, size = 300, 4, 5
    logits, bias = (torch.randn(n, length, size, generator=gen, dtype=torch.float64) for _ in range(2))
    x = torch.where(torch.rand(n, length, generator=gen) < 0.3, 2, size)
    kernel, c = Categorical(size, order), Coeffs(0.4, 0.6, 0.7, 0.3)
    asked = []

    def function(row, position):
        asked.append(len(row))
        return bias[row, position]

    log_p, log_q = logits.log_softmax(-1), (logits + bias).log_softmax(-1)
    for drift in (bias, function):
        to, ratio = kernel.step(x, Prediction(x, logits=logits), c, 1.0, draws(), drift)
        revealed = (x == size) & (to != size)
        at = to.clamp(max=size - 1)[..., None]
        # What stays masked, and what was revealed before, has no part in it.
        density = torch.where(revealed, (log_p - log_q).gather(-1, at)[..., 0], 0.0).sum(1)
        assert (ratio - density).abs().max() < 1e-10
        assert ratio.std() > 0.1
        assert torch.equal(to[x != size], x[x != size])
    # A function is asked for the revealed positions alone, and does the same.
    assert asked == [int(revealed.sum())]
    first = kernel.step(x, Prediction(x, logits=logits), c, 1.0, draws(), bias)[0]
    assert torch.equal(first, to)


# -- U8: what particles are called does not matter -----------------------------------------------------------------------------------------


def midway(method, step, lam=1.0):
    """The problem of a run, its method, and its state after so many steps with a selection at hand."""
    with quiet():
        prepared = viot.prepare(MODEL, REWARD, method, particles=16, groups=5, steps=STEPS, lam=lam)
        state = next(s for s in prepared.states() if s.step == step)
        return prepared, method.weigh(prepared.problem, method.assess(prepared.problem, method.look(prepared.problem, state)))


@pytest.mark.parametrize("resampling", ["multinomial", "systematic", "residual", "ssp"])
def test_u8_selection_keeps_the_mean_of_the_weights(resampling):
    method = URGE(guide=bad, ess_threshold=None, resampling=resampling)
    prepared, state = midway(method, 4)
    assert (state.log_w - state.log_w[:, :1]).abs().max() > 0.1
    after = method.select(prepared.problem, state)
    assert after.history[-1].stats["deaths"].sum() > 0
    assert torch.allclose(weights.log_mean_exp(after.log_w), weights.log_mean_exp(state.log_w), atol=1e-12)
    # Ancestors were drawn from the weights, so the offspring's are even.
    assert (after.log_w - after.log_w[:, :1]).abs().max() < 1e-12
    # Path and drift follow their particle.
    ancestors = after.history[-1].ancestors.long()
    for name, there in {"path": state.extra["path"], "guide": state.prediction.extra["guide"][..., 0], "x": state.x[..., 0]}.items():
        here = {"path": after.extra["path"], "guide": after.prediction.extra["guide"][..., 0], "x": after.x[..., 0]}[name]
        assert torch.equal(here, there.gather(1, ancestors)), name


def test_u8_the_order_of_particles_does_not_matter():
    method = URGE(guide=bad)
    prepared, state = midway(method, 5)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(g)) for g in range(5)])

    def estimates(state: State):
        with quiet():
            end = method.end(prepared.problem, replace(state, prediction=None))
            found = prepared.population(end)
        return found.log_z, found.mean(found.samples[..., 0]), found.log_weights

    (z, mean, w), (z2, mean2, w2) = estimates(state), estimates(state[order])
    assert torch.allclose(z, z2, atol=1e-12)
    assert torch.allclose(mean, mean2, atol=1e-12)
    assert torch.allclose(w.gather(1, order), w2, atol=1e-12)
    assert not torch.equal(w, w2)


def test_u8_equal_weights_are_left_alone():
    """At λ = 0 without a drift every weight is 1: systematic resampling keeps everybody, and the run is the base sampler's."""
    always, base = run(URGE(ess_threshold=None), lam=0.0, groups=20), run("base", lam=0.0, groups=20)
    assert always.trace["deaths"].shape[0] == STEPS - 1
    assert always.trace["deaths"].sum() == 0
    assert torch.equal(always.samples, base.samples)
    assert torch.equal(always.log_z, torch.zeros(20, dtype=torch.float64))
    # Every draw of a multinomial resampling has the same law.
    assert is_exact(run(URGE(ess_threshold=None, resampling="multinomial", guide=bad), lam=0.0), law(lam=0.0))


# -- equivalences -------------------------------------------------------------------------------------------------------------------------


def same(a, b):
    return torch.equal(a.samples, b.samples) and torch.equal(a.ancestors, b.ancestors)


def test_without_a_drift_it_is_fk_steering_with_differences():
    shared = {"schedule": "every", "resampling": "systematic"}
    urge = run(URGE(path="value", ess_threshold=0.9), groups=50)
    assert urge.trace["deaths"].sum() > 0
    fkd = run(FKDBefore(ess_threshold=0.9, **shared), groups=50)
    assert same(urge, fkd)
    # The sums of the path are rounded in another order there.
    assert torch.allclose(urge.log_weights, fkd.log_weights, atol=1e-12)
    vasr = run(VASR(masses="weights", order="none", ess_threshold=0.9, **shared), groups=50)
    assert same(urge, vasr)
    assert torch.equal(urge.log_weights, vasr.log_weights)


@pytest.mark.parametrize("guide", [None, bad], ids=["no drift", "a drift"])
def test_a_terminal_path_is_importance_sampling(guide):
    urge, importance = run(URGE(path="terminal", guide=guide), groups=20), run(Importance(guide=guide), groups=20)
    assert torch.equal(urge.samples, importance.samples)
    assert torch.equal(urge.log_weights, importance.log_weights)
    assert urge.reward_rows == importance.reward_rows == 20 * 16


def test_guidance_of_zero_needs_no_gradient():
    def black_box(samples):
        return torch.tensor([-float((x - 1.5) ** 2) for x in samples[:, 0].tolist()], dtype=torch.float64)

    population = run(URGE(guide=good), reward=black_box, groups=100)
    assert torch.allclose(population.log_weights, run(URGE(guide=good), groups=100).log_weights, atol=1e-9)
    with pytest.raises(TypeError, match="no gradient"):
        run(URGE(guidance=1.0), reward=black_box, groups=1)


def test_a_scaled_path_begins_with_nothing():
    """Nothing is weighed at the start, a seventh of the steps in as much of the value."""
    method = URGE(path="scaled", ess_threshold=0.0)
    prepared = viot.prepare(MODEL, REWARD, method, particles=8, steps=STEPS)
    first, second, *_ = prepared.states()
    assert (first.log_w == 0).all()
    assert torch.equal(second.log_w, second.rewards / STEPS)


def test_a_seat_at_the_table_of_methods():
    assert isinstance(viot.methods.make("urge"), URGE)
    for wrong, match in (
        ({"path": "early"}, "path must be"),
        ({"guidance": math.inf}, "finite"),
        ({"guidance": 1.0, "eta": 0.0}, "eta > 0"),
    ):
        with pytest.raises(ValueError, match=match):
            URGE(**wrong)
    assert URGE(eta=0.0).needs_gradient is False
    assert is_exact(run(URGE(eta=0.0), groups=600), law(eta=0.0))
