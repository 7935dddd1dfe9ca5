"""Twists: the families, their statistics and fits, what they are saved as, and that no twist moves the target of an exact method."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from exact import MODEL, REWARD, is_exact, law, z_scores
from helpers import Line, Pictures, Tokens, differing, quiet
from masked import MarkovTokens, frequency_scores

import viot
from viot import cost, trust, twists
from viot.methods import FKD, URGE, VASR, Importance, TriTSMC
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic
from viot.twists import VJP, Affine, Direction, Feature, Neural, Shift, Slope, TokenBias, Twist, as_twist, basis_of

STEPS = 8
PLANE = GaussianMixture([[0.5, -0.5]], [[[1.0, 0.6], [0.6, 0.8]]])
BENT = GaussianMixture([[1.0, 0.0], [-1.0, 1.5]], [[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0.0], [0.0, 0.6]]])
PULL = Quadratic([1.0, 0.5], 1.0)
WORDS = MarkovTokens()
IDS = torch.tensor([[0, 1, 2]])


def letters(texts):
    return torch.tensor([0.8 * t.count("c") - 0.5 * (t[0] == "b") for t in texts])


class Unending(GaussianMixture):
    """The same data on a grid that ends at σ > 0; the last step of the chain has no noise all the same."""

    def grid(self, steps):
        t = torch.linspace(1, 0.1, steps + 1, dtype=torch.float64)
        alphas, sigmas = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
        alphas[0], sigmas[0] = 0.0, 1.0
        return viot.Grid(t[:-1], alphas, sigmas)


class Late(GaussianMixture):
    """The same data on a grid that starts with some signal left, so that a slope twist moves x_T too."""

    def grid(self, steps):
        t = torch.linspace(0.8, 0, steps + 1, dtype=torch.float64)
        return viot.Grid(t[:-1], torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2))


class Flow:
    """A rectified flow of N(0.4, ½) data in two dimensions with the stochastic step of Flow-GRPO, whose prior's law is declared."""

    event_shape, dtype, device, kernel, prior_std = (2,), torch.float64, torch.device("cpu"), viot.kernel.FlowSDE(), 1.0

    def grid(self, steps):
        sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return viot.Grid(sigmas[:-1], 1 - sigmas, sigmas)

    def prior(self, n, generator):
        return torch.randn(n, 2, generator=generator, dtype=self.dtype)

    def predict(self, x, t, group):
        gain = ((1 - t) * 0.5 / ((1 - t) ** 2 * 0.5 + t**2))[:, None]
        return viot.Prediction(0.4 + gain * (x - (1 - t)[:, None] * 0.4))

    def decode(self, x0, group):
        return x0


# -- one round, by hand -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spy(TriTSMC):
    """Keeps the end of every training round."""

    def learned(self, problem, state):
        SEEN.append((problem, state))
        return super().learned(problem, state)


SEEN: list = []


def one_round(twist, model=PLANE, reward=PULL, *, scale=0.4, n=12, groups=3, steps=STEPS, eta=1.0, lam=1.0, seed=0):
    """The problem and the state at the end of one training round of a twist with random parameters, and those."""
    probe = viot.prepare(model, reward, TriTSMC(eta=eta, rounds=1), particles=2 * n, groups=groups, steps=steps, lam=lam, seed=seed)
    size = twist.size(probe.problem)
    theta = scale * torch.randn(groups, size, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    method = Spy(twist=replace(twist, theta=theta), eta=eta, rounds=1, schedule=())
    SEEN.clear()
    with quiet():
        viot.sample(model, reward, method, particles=2 * n, groups=groups, steps=steps, lam=lam, seed=seed, progress=False)
    ((problem, state),) = SEEN
    return problem, state, theta


def some_weights(shape, seed=9):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


GAUSSIAN = {
    "slope": Slope(),
    "slope, data_std, features": Slope(features=torch.tensor([[1.0, 1.0]]), data_std=0.7),
    "slope, buckets": Slope(buckets=3),
    "slope, a bucket for two steps": Slope(buckets=STEPS // 2),
    "direction": Direction(),
    "direction, one bucket": Direction(buckets=1),
    "vjp": VJP(),
    "vjp, buckets": VJP(features=torch.tensor([[1.0, 2.0]]), buckets=STEPS // 2),
    "shift": Shift(),
    "shift, features": Shift(features=torch.tensor([[1.0, -1.0]])),
    "affine": Affine(),
    "neural": Neural(hidden=5),
}
DISCRETE = {
    "tokens": TokenBias(most=3, ids=IDS),
    "tokens, two of three": TokenBias(most=2, ids=torch.tensor([[2, 0]])),
    "tokens, fewer than most": TokenBias(most=4, ids=torch.tensor([[2, 0, 1, -1]])),
    "feature, phi": Feature(phi=torch.tensor([0.0, -0.5, 1.0])),
    "feature, equal phi": Feature(phi=torch.tensor([0.5, 1.0, 0.5])),
    "feature, fills": Feature(),
    "feature, two fills": Feature(top=2),
}


def a_round(name, **more):
    """Of any family by its name in the tables above."""
    if name in DISCRETE:
        return DISCRETE[name], one_round(DISCRETE[name], WORDS, letters, **{"steps": 4, **more})
    return GAUSSIAN[name], one_round(GAUSSIAN[name], **{"model": BENT, **more})


FAMILIES = [*GAUSSIAN, *DISCRETE]


@pytest.mark.parametrize(("name", "eta"), [*((name, 1.0) for name in FAMILIES), *((name, 0.5) for name in GAUSSIAN)])
def test_the_statistics_know_the_ratio_of_the_paths(name, eta):
    """log q − log p of each path from its statistics is what the kernel summed up as it drew them, that of x_T included."""
    twist, (_, state, theta) = a_round(name, eta=eta)
    found = twist.log_ratio(Twist.held(state), theta)
    assert found.std() > 0.03
    assert (found + state.log_w).abs().max() < 1e-6


@pytest.mark.parametrize("twist", [Slope(), Direction(), Shift(), Affine(), Neural(hidden=4), VJP()], ids=lambda t: t.name)
def test_the_ratio_on_other_grids_kernels_and_precisions(twist):
    """A grid that ends at σ > 0, a flow's kernel, single precision, and a model that does not declare its prior."""
    ends = Unending([[0.5, -0.5]], 0.6)
    single = GaussianMixture([[0.5, -0.5]], 0.6, dtype=torch.float32)
    late = Late([[0.5, -0.5]], 0.6)
    for model, within in ((late, 1e-6), (ends, 1e-6), (Flow(), 1e-6), (Line(), 1e-6), (single, 2e-5)):
        _, state, theta = one_round(twist, model, eta=0.7 if isinstance(model, Flow) else 1.0)
        found = twist.log_ratio(Twist.held(state), theta)
        assert (found + state.log_w).abs().max() < within, type(model).__name__
        declared = hasattr(model, "prior_std") and not isinstance(twist, (VJP, Neural))
        if isinstance(twist, (Shift, Affine)):
            live = Twist.held(state)["live"]
            assert bool((live[..., STEPS] == float(declared)).all())
            assert bool((live[..., STEPS - 1] == 0).all()), "no noise is drawn in the last step"


def test_the_ratio_of_pictures():
    with quiet():
        for twist in (Slope(), Slope(features=2), Shift(features=2), Direction()):
            _, state, theta = one_round(twist, Pictures(), lambda x: x.flatten(1).mean(1), scale=0.1)
            assert (twist.log_ratio(Twist.held(state), theta) + state.log_w).abs().max() < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_distance_between_two_parameters(name):
    """KL ≥ 0, 0 at the same θ, and at weights 1/N the mean of log q_new/q_old under q_new once the paths are those of q_new."""
    twist, (_, state, theta) = a_round(name, n=3000, groups=1)
    statistics = Twist.held(state)
    w = torch.full(state.log_w.shape, 1 / state.log_w.shape[1], dtype=torch.float64)
    other = theta + torch.linspace(0.6, -0.6, theta.shape[1], dtype=torch.float64)
    assert twist.kl(statistics, w, theta, theta).abs().max() < 1e-12
    found = twist.kl(statistics, w, theta, other)
    assert bool((found > 1e-3).all())
    paths = twist.log_ratio(statistics, theta) - twist.log_ratio(statistics, other)
    assert abs(found - paths.mean()) < 4.5 * paths.std() / paths.shape[1] ** 0.5
    # Paths far from typical ones, or weighed strangely, give a distance all the same.
    assert bool((twist.kl(statistics, some_weights(w.shape), other, theta) >= 0).all())


def test_the_distance_of_slopes_in_closed_form():
    """½ Σ_k s_k² |η − η'|² with s_k = std_k α_s v / (α_s² v + σ_s²) of every noisy step and of the start."""
    std, steps = 0.7, STEPS
    for buckets in (1, 4):
        twist = Slope(data_std=std, buckets=buckets)
        problem, state, old = one_round(twist, PLANE)
        new = old + 0.25
        total, grid, v = 0.0, PLANE.grid(steps), std**2
        for j in range(-1, steps - 1):
            a, s = (0.0, 1.0) if j < 0 else (grid.alphas[j + 1].item(), grid.sigmas[j + 1].item())
            if j < 0:
                noise = 1.0
            else:
                a_t, s_t, a_s, s_s = grid.coeffs(j)
                noise = s_s * math.sqrt(1 - (a_t * s_s / (a_s * s_t)) ** 2)
            total += (noise * a * v / (a * a * v + s * s)) ** 2 * 2 * 0.25**2 / 2
        found = twist.kl(Twist.held(state), some_weights(state.log_w.shape), new, old)
        assert torch.allclose(found, torch.full_like(found, total), rtol=1e-10)
        assert twist.size(problem) == 2 * buckets


@pytest.mark.parametrize("name", [n for n in FAMILIES if "neural" not in n and "direction" not in n])
def test_a_fit_without_ridge_is_a_maximum(name):
    """The gradient of Σ W log q vanishes, and no step from there gains."""
    twist, (_, state, old) = a_round(name, n=60)
    twist, statistics = replace(twist, ridge=0.0), Twist.held(state)
    w = some_weights(state.log_w.shape)
    theta = twist.fit(statistics, w, old).requires_grad_()
    value = (w * twist.log_ratio(statistics, theta)).sum(-1)
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    assert gradient.abs().max() < 1e-6
    gen = torch.Generator().manual_seed(3)
    for _ in range(5):
        near = theta.detach() + 0.05 * torch.randn(theta.shape, generator=gen, dtype=torch.float64)
        assert bool(((w * twist.log_ratio(statistics, near)).sum(-1) <= value.detach() + 1e-12).all())
    # At weights 1/N, and from another θ, it is another one.
    assert (twist.fit(statistics, torch.full_like(w, 1 / w.shape[1]), old) - theta).abs().max() > 0.02


RIDGED = ["slope", "slope, buckets", "vjp", "vjp, buckets", "shift", "tokens", "feature, phi", "feature, fills"]


@pytest.mark.parametrize("name", RIDGED)
def test_a_fit_with_ridge_is_the_penalised_maximum(name):
    """∇ Σ W log q = ρ (θ − θ_old) with ρ = ridge · P · Σ W² · information per parameter."""
    twist, (_, state, old) = a_round(name, n=40)
    statistics = Twist.held(state)
    w = some_weights(state.log_w.shape)
    assert twist.ridge == 0.5
    theta = twist.fit(statistics, w, old).requires_grad_()
    (gradient,) = torch.autograd.grad((w * twist.log_ratio(statistics, theta)).sum(), theta)
    at = theta.detach().clone().requires_grad_() if name in ("shift",) else old.clone().requires_grad_()
    (first,) = torch.autograd.grad(twist.kl(statistics, w, at, at.detach()).sum(), at, create_graph=True)
    information = torch.stack([torch.autograd.grad(first[:, i].sum(), at, retain_graph=True)[0][:, i] for i in range(old.shape[1])], -1)
    if name == "shift":
        # Every step by itself: one parameter, whose information is 1 where noise was drawn.
        parameters = 1
    else:
        parameters, buckets = old.shape[1], getattr(twist, "buckets", 1)
        mean = information.unflatten(-1, (buckets, -1)).mean(-1, keepdim=True)
        information = mean.expand(-1, -1, old.shape[1] // buckets).flatten(1)
    rho = 0.5 * parameters * w.square().sum(-1, keepdim=True) * information
    assert (gradient - rho * (theta.detach() - old)).abs().max() < 1e-7
    assert (theta.detach() - old).abs().max() > 0.01
    # More of it, and θ stays nearer; without end, it stays where it is.
    held = replace(twist, ridge=1e7).fit(statistics, w, old)
    assert (held - old).abs().max() < 1e-3


def test_a_direction_is_measured_by_the_others():
    """From the mean of the samples to their weighted mean; how far, by least squares in which no particle sees its own direction."""
    twist, (_, state, old) = a_round("direction", n=9, groups=1)
    held, w = {name: value[0] for name, value in Twist.held(state).items()}, some_weights((1, 9))[0]
    x0, theta = held["x0"], old[0].view(4, 2).clone()
    assert torch.equal(x0, state.x[0])
    others = []
    for i in range(9):
        keep = torch.arange(9) != i
        others.append((w[keep, None] * x0[keep]).sum(0) / w[keep].sum() - x0[keep].mean(0))
    for b in range(4):
        info = (w * held["info"][:, b]).sum()
        gained = sum(w[i] * others[i] @ (held["score"][i, b] - info * theta[b]) for i in range(9))
        size = sum(w[i] * others[i] @ others[i] for i in range(9)) * info * (1 + 0.5 * 4 * w.square().sum())
        theta[b] += (gained / size).clamp_min(0) * ((w[:, None] * x0).sum(0) - x0.mean(0))
    assert torch.allclose(twist.fit(Twist.held(state), w[None], old)[0], theta.flatten(), rtol=1e-9, atol=1e-12)


def test_a_small_network_learns_what_it_is_shown():
    """Weights that favour noise in one direction: the fit raises the likelihood of held-out paths, and never lowers it."""
    twist = Neural(hidden=8, epochs=40)
    _, state, _ = one_round(twist, PLANE, n=400, scale=0.0)
    statistics, zero = Twist.held(state), torch.zeros(3, twist.size(SEEN[0][0]), dtype=torch.float64)
    w = statistics["e"].sum((-1, -2)).mul(0.3).softmax(-1)
    fitted = twist.fit(statistics, w, zero)
    apart = torch.arange(400) % 4 == 3
    value = (w * twist.log_ratio(statistics, fitted))[:, apart].sum(-1)
    assert bool((value > 0.01).all())
    assert torch.equal(twist.log_ratio(statistics, zero), torch.zeros_like(w))
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(2).softmax(-1)
    kept = twist.fit(statistics, noise, zero)
    assert bool(((noise * twist.log_ratio(statistics, kept))[:, apart].sum(-1) >= 0).all())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("nats", [0.01, 0.3, 4.0])
def test_the_cap_is_never_exceeded(name, nats):
    twist, (_, state, old) = a_round(name)
    statistics, w = Twist.held(state), some_weights(state.log_w.shape)

    def kl(theta):
        return twist.kl(statistics, w, theta, old)

    gen = torch.Generator().manual_seed(5)
    for scale in (0.001, 0.3, 3.0):
        aim = old + scale * torch.randn(old.shape, generator=gen, dtype=torch.float64)
        new, share = trust.capped(kl, old, aim, nats)
        assert bool((kl(new) <= nats * (1 + 1e-6)).all())
        assert bool(((share > 0) & (share <= 1)).all())
        assert torch.allclose(new, old + share[:, None] * (aim - old), rtol=1e-12, atol=1e-12)
        free = kl(aim) <= nats
        assert bool((share[free] == 1).all())
        if name != "neural":
            assert torch.allclose(kl(new)[~free], torch.full_like(share[~free], nats), rtol=1e-5)


def test_steps_of_a_bucket():
    for buckets in (1, 3, 4, STEPS):
        twist = Slope(buckets=buckets)
        problem = viot.prepare(PLANE, PULL, TriTSMC(), particles=8, steps=STEPS).problem
        seen = [twist.bucket(problem, j) for j in range(STEPS)]
        assert seen == sorted(seen)
        assert set(seen) == set(range(buckets))
        assert twist.size(problem) == 2 * buckets
    with pytest.raises(ValueError, match="buckets"):
        Slope(buckets=0)


@pytest.mark.parametrize("buckets", [STEPS // 2, STEPS])
def test_buckets_without_noise_keep_their_parameters(buckets):
    """The last step draws no noise: a bucket of it alone has nothing to learn from, and stays finite."""
    twist = Slope(buckets=buckets)
    _, state, old = one_round(twist, PLANE)
    theta = twist.fit(Twist.held(state), some_weights(state.log_w.shape), old)
    assert bool(theta.isfinite().all())
    if buckets == STEPS:
        assert torch.allclose(theta[:, -2:], old[:, -2:], rtol=1e-12, atol=0)


# -- bases ------------------------------------------------------------------------------------------------------------------------------

MATRIX = torch.tensor([[1.0, 2.0, 0.0, 1.0, 0.0, 3.0], [0.0, 1.0, 1.0, -1.0, 2.0, 0.0]])


@pytest.mark.parametrize(
    ("features", "shape", "m"),
    [
        (None, (5,), 5),
        (None, (2, 3), 6),
        (None, (3, 8, 8), 3 * 16),
        (2, (3, 8, 8), 3 * 4),
        (3, (4, 7, 5), 4 * 9),
        (1, (3, 8, 8), 3),
        (2, (64,), 2),
        (None, (64,), 4),
        (None, (77, 40), 16),
        (4, (2, 3), 6),
        (2, (2, 3, 8, 8), 2 * 3 * 4),
        (MATRIX, (6,), 2),
        (MATRIX.reshape(2, 2, 3), (2, 3), 2),
    ],
)
def test_bases(features, shape, m):
    basis = basis_of(features, shape)
    assert basis.m == m
    like = torch.zeros(1, m, *shape)
    rows = basis.lift(torch.eye(m, dtype=torch.float64)[None], like)
    assert rows.shape == (1, m, *shape)
    assert rows.dtype == like.dtype
    rows = basis.lift(torch.eye(m, dtype=torch.float64)[None], like.double())
    flat = rows.flatten(2)[0]
    assert torch.allclose(flat @ flat.T, torch.eye(m, dtype=torch.float64), atol=1e-12)
    gen = torch.Generator().manual_seed(0)
    coordinates = torch.randn(2, 3, m, generator=gen, dtype=torch.float64)
    lifted = basis.lift(coordinates, torch.zeros(2, 3, *shape, dtype=torch.float64))
    assert torch.allclose(basis.project(lifted), coordinates, atol=1e-12)
    v = torch.randn(2, 3, *shape, generator=gen, dtype=torch.float64)
    assert torch.allclose(basis.project(v), v.flatten(2) @ flat.T, atol=1e-12)
    if isinstance(features, torch.Tensor):
        # The span of the rows given, and a single row keeps its direction.
        inside = features.double().flatten(1)[None]
        shaped = inside.view(1, len(features), *shape)
        assert torch.allclose(basis.lift(basis.project(shaped), shaped).flatten(2), inside, atol=1e-10)
        one = basis_of(features[:1], shape)
        assert (one.project(shaped[:, :1]) > 0).all()


def test_cells_of_a_picture():
    """Each coordinate is an average over a rectangle of one channel."""
    basis = basis_of(2, (2, 4, 6))
    at = basis.project(torch.arange(48, dtype=torch.float64).view(1, 1, 2, 4, 6))[0, 0]
    v = torch.arange(48, dtype=torch.float64).view(2, 4, 6)
    cells = [v[c, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].sum() / 6**0.5 for c in range(2) for i in range(2) for j in range(2)]
    assert torch.allclose(at, torch.stack(cells))


def test_bases_that_are_none():
    with pytest.raises(ValueError, match="linearly dependent"):
        basis_of(torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), (3,))
    with pytest.raises(ValueError, match="linearly dependent"):
        basis_of(torch.zeros(1, 3), (3,))
    with pytest.raises(ValueError, match=r"\(m ≤ 3, 3\), not \(1, 2\)"):
        basis_of(torch.ones(1, 2), (3,))
    with pytest.raises(ValueError, match="m ≤ 2"):
        basis_of(torch.eye(3)[:, :2], (2,))
    with pytest.raises(ValueError, match="≥ 1, not 0"):
        basis_of(0, (3, 8, 8))


# -- vjp --------------------------------------------------------------------------------------------------------------------------------


class Jacobians(viot.twists.VJP):
    """Compares each step's products with the Jacobian of the model in closed form."""

    def drift(self, problem, state, eta):
        coeffs = problem.grid.coeffs(state.step)
        cov, eye = PLANE.law.covs[0], torch.eye(2, dtype=torch.float64)
        a, s = coeffs.alpha_t, coeffs.sigma_t
        jacobian = a * cov @ torch.linalg.inv(a * a * cov + s * s * eye)
        found = state.prediction.extra["guide"]
        assert torch.allclose(found, jacobian.T.expand_as(found), atol=1e-12)
        drift = super().drift(problem, state, eta)
        assert torch.allclose(drift, (self.parameters(problem, state) @ jacobian)[:, None].expand_as(drift), atol=1e-12)
        STEPS_SEEN.append(state.step)
        return drift


STEPS_SEEN: list = []


def test_vjp_is_the_jacobian():
    STEPS_SEEN.clear()
    twist = Jacobians(theta=torch.tensor([[0.7, -0.4]]))
    viot.sample(PLANE, PULL, Importance(guide=twist), particles=4, groups=2, steps=STEPS, progress=False)
    assert list(range(STEPS - 1)) == STEPS_SEEN


def test_the_slope_is_that_of_gaussian_data():
    from viot.twists.linear import gain

    for std in (0.5, 1.0, 1.7):
        model = GaussianMixture([[0.3]], std**2)
        grid = model.grid(STEPS)
        for j in range(STEPS - 1):
            x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
            guess = model.denoise(x, grid.alphas[j + 1][None], grid.sigmas[j + 1][None])
            (slope,) = torch.autograd.grad(guess.sum(), x)
            assert gain(grid.coeffs(j), std) == pytest.approx(slope.item(), abs=1e-12)


def test_vjp_counts_and_slices():
    """One row of gradient for each prediction with noise to come, whatever the features; slices change no draw."""
    task = {"particles": 24, "groups": 3, "steps": STEPS, "seed": 2, "progress": False}
    whole = viot.sample(BENT, PULL, TriTSMC(twist="vjp", schedule=()), **task)
    assert whole.grad_rows == 3 * 24 * (STEPS - 1)
    assert whole.nfe == 3 * 24 * STEPS
    assert cost.planned(viot.prepare(BENT, PULL, TriTSMC(twist="vjp"), **{k: v for k, v in task.items() if k != "progress"})) == (
        cost.Rows(whole.nfe, whole.decode_rows + 3 * 12 * 4, whole.reward_rows + 3 * 12 * 4, whole.grad_rows)
    )
    for batch_size in (1, 5, 24):
        sliced = viot.sample(BENT, PULL, TriTSMC(twist="vjp", schedule=()), batch_size=batch_size, **task)
        assert (sliced.rewards - whole.rewards).abs().max() < 1e-9
        assert (sliced.training["log_z"] - whole.training["log_z"]).abs().max() < 1e-9
        assert sliced.grad_rows == whole.grad_rows


class Closed(GaussianMixture):
    differentiable = False


def test_vjp_refusals():
    wide = GaussianMixture([[0.0] * 5], 1.0)
    with pytest.raises(ValueError, match=r"m ≤ 4, D\), not 5"):
        viot.sample(wide, Quadratic([1.0] * 5), TriTSMC(twist="vjp"), particles=32, steps=4, progress=False)
    few = VJP(features=torch.eye(5)[:4])
    viot.sample(wide, Quadratic([1.0] * 5), TriTSMC(twist=few), particles=32, steps=4, progress=False)
    with pytest.raises(TypeError, match="Closed declares differentiable = False"):
        viot.sample(Closed([[0.0]]), REWARD, TriTSMC(twist="vjp"), particles=32, steps=4, progress=False)


# -- on disk ----------------------------------------------------------------------------------------------------------------------------

SAVED = {**GAUSSIAN, **DISCRETE, "ridge": Slope(ridge=2.5, buckets=2), "side": Shift(features=2)}


@pytest.mark.parametrize("name", SAVED)
def test_save_and_load(name, tmp_path):
    twist = SAVED[name]
    theta = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    twist = replace(twist, theta=theta)
    twist.save(tmp_path / "t.safetensors")
    found = Twist.load(tmp_path / "t.safetensors")
    assert type(found) is type(twist)
    assert torch.equal(found.theta, theta)
    ours, theirs = found.settings(), twist.settings()
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        same = torch.equal(ours[key], value) and ours[key].dtype == value.dtype if isinstance(value, torch.Tensor) else ours[key] == value
        assert same, key
    assert found == twist
    assert found.record() == twist.record() | {"file": str(tmp_path / "t.safetensors")}
    found.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "t.safetensors").read_bytes()
    # The record tells parameters apart.
    assert replace(found, theta=theta + 1e-12).record() != twist.record()


def test_what_is_no_twist_on_disk(tmp_path):
    with pytest.raises(ValueError, match="no parameters to save"):
        Slope().save(tmp_path / "t.safetensors")
    from safetensors.torch import save_file

    save_file({"theta": torch.zeros(1, 1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no twist"):
        Twist.load(tmp_path / "other.safetensors")


def test_names():
    assert as_twist("auto") == Slope()
    assert as_twist("auto", WORDS) == TokenBias()
    assert as_twist("auto", PLANE) == Slope()
    assert as_twist("auto", Pictures()) == Direction()
    assert as_twist({"name": "shift", "features": 3}) == Shift(features=3)
    assert {as_twist(name).name for name in twists.twists} == set(twists.twists)
    with pytest.raises(TypeError, match="a twist is a name"):
        as_twist(3)
    with pytest.raises(ValueError, match="slop"):
        as_twist("slop")


# -- a twist that all groups share ------------------------------------------------------------------------------------------------------

TASK = {"particles": 16, "groups": 500, "steps": STEPS, "progress": False, "seed": 3}


@pytest.fixture(scope="module")
def shared():
    return TriTSMC(twist="slope", rounds=3).learn(MODEL, REWARD, particles=64, groups=4, steps=STEPS, seed=1)


def test_learn_fits_one_twist_for_all(shared):
    assert shared.name == "slope"
    assert shared.theta.shape == (1, 1)
    assert shared.theta.item() > 0.3
    again = TriTSMC(twist="slope", rounds=3).learn(MODEL, REWARD, particles=64, groups=4, steps=STEPS, seed=1)
    assert torch.equal(again.theta, shared.theta)
    other = TriTSMC(twist="slope", rounds=3).learn(MODEL, REWARD, particles=64, groups=4, steps=STEPS, seed=2)
    assert not torch.equal(other.theta, shared.theta)
    with pytest.raises(ValueError, match="rounds ≥ 1"):
        TriTSMC(rounds=0).learn(MODEL, REWARD)


@pytest.mark.parametrize(
    "method",
    [Importance, lambda **k: FKD(schedule="every", **k), VASR, lambda **k: URGE(schedule=3, **k)],
    ids=["importance", "fkd", "vasr", "urge"],
)
def test_a_shared_twist_guides_any_method(method, shared, tmp_path):
    found = viot.sample(MODEL, REWARD, method(guide=shared), **TASK)
    assert is_exact(found, law())
    plain = viot.sample(MODEL, REWARD, method(), **TASK)
    if method is Importance:
        assert found.ess.mean() > 1.3 * plain.ess.mean()
    assert found.log_z.exp().std() < 0.8 * plain.log_z.exp().std()
    shared.save(tmp_path / "twist.safetensors")
    from_file = viot.sample(MODEL, REWARD, method(guide=str(tmp_path / "twist.safetensors")), **TASK)
    assert differing(from_file, found) == []


def test_a_shared_twist_in_tri_tsmc(shared):
    found = viot.sample(MODEL, REWARD, TriTSMC(twist=shared, rounds=0), **TASK)
    assert is_exact(found, law())
    assert found.ess.mean() > 1.3 * viot.sample(MODEL, REWARD, Importance(), **TASK).ess.mean()
    assert found.nfe == 500 * 16 * STEPS
    # Training goes on from where it was.
    further = viot.sample(MODEL, REWARD, TriTSMC(twist=shared), **{**TASK, "particles": 48})
    assert further.training["ess"][0].mean() > 0.8
    assert is_exact(further, law())


@pytest.mark.parametrize("name", ["shift", "affine", "neural", "vjp", "slope", "direction"])
def test_any_learned_family_keeps_the_law(name):
    """Learned in a few hundred particles: the evidence stays unbiased, the weights get more even than without."""
    twist = TriTSMC(twist={"name": name}, rounds=2).learn(MODEL, REWARD, particles=600, groups=2, steps=STEPS)
    found = viot.sample(MODEL, REWARD, Importance(guide=twist), **TASK)
    assert is_exact(found, law())
    assert found.ess.mean() > 0.75 * 16 > 1.2 * viot.sample(MODEL, REWARD, Importance(), **TASK).ess.mean()


@pytest.mark.parametrize("twist", [TokenBias(), TokenBias(most=2), Feature(), Feature(phi=torch.tensor([0.0, -0.5, 1.0]))])
def test_learned_twists_of_tokens_keep_the_law(twist, tmp_path):
    """What was learned knows which tokens it belongs to, also from a file."""
    found = TriTSMC(twist=twist, rounds=2).learn(WORDS, letters, particles=200, groups=2, steps=4)
    found.save(tmp_path / "t.safetensors")
    task = {"particles": 16, "groups": 300, "steps": 4, "progress": False}
    for method in (Importance(guide=str(tmp_path / "t.safetensors")), TriTSMC(twist=found, rounds=0, schedule=())):
        answer = viot.sample(WORDS, letters, method, **task)
        assert frequency_scores(answer, WORDS, letters, 4).abs().max() < 4.3
        assert answer.ess.mean() > 1.1 * viot.sample(WORDS, letters, Importance(), **task).ess.mean()


@dataclass(frozen=True)
class Unpaid(Importance):
    """Follows the twist and does not weigh for it."""

    def finish(self, problem, state):
        return super().finish(problem, state.but(log_w=torch.zeros_like(state.log_w)))


def test_an_unpaid_twist_is_found(shared):
    assert z_scores(viot.sample(MODEL, REWARD, Unpaid(guide=shared), **TASK), law()).abs().max() > 6


BIASED = TokenBias(most=3, ids=IDS, theta=torch.tensor([[0.1, -0.4, 0.7]]))
LEXICON = Feature(phi=torch.tensor([0.0, -0.5, 1.0]), theta=torch.tensor([[0.8]]))
FILLS = Feature(theta=torch.tensor([[0.7]]))


@pytest.mark.parametrize("twist", [BIASED, LEXICON, FILLS], ids=["tokens", "lexicon", "fills"])
@pytest.mark.parametrize(
    "method",
    [Importance, lambda **k: FKD(schedule="every", **k), lambda **k: VASR(schedule="every", **k)],
    ids=["importance", "fkd", "vasr"],
)
def test_twists_of_tokens_keep_the_tilted_law(method, twist):
    """The frequency of every string and the evidence, by enumeration."""
    found = viot.sample(
        WORDS, letters, method(guide=twist), particles=16, groups=1000 if twist is not FILLS else 400, steps=4, progress=False
    )
    assert frequency_scores(found, WORDS, letters, 4).abs().max() < 4.3
    if method is Importance:
        plain = viot.sample(WORDS, letters, method(), particles=16, groups=200, steps=4, progress=False)
        assert found.ess.mean() > 1.05 * plain.ess.mean()


def test_an_unpaid_twist_of_tokens_is_found():
    found = viot.sample(WORDS, letters, Unpaid(guide=BIASED), particles=16, groups=1000, steps=4, progress=False)
    assert frequency_scores(found, WORDS, letters, 4).abs().max() > 6


# -- refusals ---------------------------------------------------------------------------------------------------------------------------


class NeverCalled:
    """A model that must not be asked for a prediction."""

    def predict(self, x, t, group):
        raise AssertionError("the network was called")


class SilentPlane(NeverCalled, GaussianMixture):
    pass


class SilentWords(NeverCalled, MarkovTokens):
    pass


class SilentPictures(NeverCalled, Pictures):
    pass


@pytest.mark.parametrize("twist", [Slope(), Direction(), VJP(features=torch.ones(1, 3)), Shift(), Affine(), Neural()], ids=lambda t: t.name)
def test_families_for_numbers_refuse_tokens(twist):
    ready = TriTSMC(twist=twist)
    with pytest.raises(TypeError, match=f"a {twist.name} twist is for real numbers.*SilentWords are not: use feature, tokens"):
        viot.sample(SilentWords(), letters, ready, particles=32, steps=4, progress=False)
    probe = viot.prepare(WORDS, letters, ready, particles=32, steps=4)
    fitted = replace(twist, theta=torch.zeros(1, twist.size(probe.problem), dtype=torch.float64))
    for method in (VASR(guide=fitted), Importance(guide=fitted), TriTSMC(twist=fitted, rounds=0)):
        with pytest.raises(TypeError, match="for real numbers"):
            viot.sample(SilentWords(), letters, method, particles=32, steps=4, progress=False)


@pytest.mark.parametrize("twist", [TokenBias(), Feature(), Feature(phi=torch.ones(3))], ids=["tokens", "feature", "lexicon"])
def test_families_for_tokens_refuse_numbers(twist):
    with pytest.raises(
        TypeError, match=f"a {twist.name} twist is for tokens.*SilentPlane are not: use affine, direction, neural, shift, slope, vjp"
    ):
        viot.sample(SilentPlane([[0.5, 0.0]]), PULL, TriTSMC(twist=twist), particles=32, steps=4, progress=False)
    fitted = replace(twist, theta=torch.zeros(1, 50 if twist.name == "tokens" else 1, dtype=torch.float64))
    for method in (VASR(guide=fitted), TriTSMC(twist=fitted, rounds=0)):
        with pytest.raises(TypeError, match="for tokens"):
            viot.sample(SilentPlane([[0.5, 0.0]]), PULL, method, particles=32, steps=4, progress=False)


@pytest.mark.parametrize("twist", ["tokens", "feature", "slope", "vjp"])
def test_a_family_that_does_not_fit_is_refused_without_training_too(twist):
    """rounds=0 and no parameters: nothing would be moved, and the family is a mistake all the same."""
    model, reward = (SilentPlane([[0.5, 0.0]]), PULL) if twist in ("tokens", "feature") else (SilentWords(), letters)
    with pytest.raises(TypeError, match=f"a {twist} twist is for"):
        viot.sample(model, reward, TriTSMC(twist=twist, rounds=0), particles=32, steps=4, progress=False)


def test_remasking_is_refused():
    again = SilentWords(remask=0.1)
    for method in (TriTSMC(), TriTSMC(twist="feature"), VASR(guide=BIASED), TriTSMC(twist=BIASED, rounds=0)):
        with pytest.raises(ValueError, match="remask=0"):
            viot.sample(again, letters, method, particles=32, steps=4, progress=False)


def test_an_order_without_density_is_refused():
    model = SilentWords()
    model.kernel = viot.Categorical(3, order="confidence")
    for method in (TriTSMC(), VASR(guide=BIASED)):
        with pytest.raises(TypeError, match="density"):
            viot.sample(model, letters, method, particles=32, steps=4, progress=False)


def test_other_kernels():
    """Revealing from the left has a density, and a twist with it."""
    model = MarkovTokens()
    model.kernel = viot.Categorical(3, order="left")
    found = viot.sample(model, letters, TriTSMC(), particles=24, groups=20, steps=4, progress=False)
    assert found.training["moved"].max() > 0


@pytest.mark.parametrize("method", [VASR, FKD, Importance, URGE])
def test_an_unfitted_twist_is_no_guide(method):
    with pytest.raises(ValueError, match=r"not been fitted: TriTSMC\(twist=…\)\.learn"):
        method(guide=Slope())


def test_another_size_is_refused():
    wrong = Slope(theta=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"parameters \(1, 3\), and a run of 4 steps with 1 groups needs \(1 or 1, 2\).*another model"):
        viot.sample(SilentPlane([[0.5, 0.0]]), PULL, VASR(guide=wrong), particles=8, steps=4, progress=False)
    with pytest.raises(ValueError, match="another model or number of steps"):
        viot.sample(
            SilentPlane([[0.5, 0.0]]), PULL, TriTSMC(twist=Shift(theta=torch.zeros(1, 2 * 4))), particles=8, steps=4, progress=False
        )
    of_two = Slope(theta=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"with 3 groups needs \(1 or 3, 2\)"):
        viot.sample(SilentPlane([[0.5, 0.0]]), PULL, VASR(guide=of_two), particles=8, groups=3, steps=4, progress=False)
    with pytest.raises(ValueError, match="finite tensor"):
        Slope(theta=torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match="finite tensor"):
        Slope(theta=torch.zeros(2))


def test_settings_that_are_refused():
    for make, word in (
        (lambda: Slope(ridge=-1.0), "ridge"),
        (lambda: Neural(hidden=0), "hidden"),
        (lambda: TokenBias(most=0), "most"),
        (lambda: Feature(top=1), "top"),
        (lambda: Feature(phi=torch.ones(2, 2)), "phi"),
        (lambda: Feature(phi=torch.arange(100.0)), "100 different values"),
    ):
        with pytest.raises(ValueError, match=word):
            make()
    with pytest.raises(ValueError, match="65 numbers; use slope"):
        viot.sample(SilentPlane([[0.0] * 65]), Quadratic([0.0] * 65), TriTSMC(twist="affine"), particles=32, steps=4, progress=False)
    # Nothing to move in a chain without noise.
    for method in (lambda: Importance(guide=Slope(theta=torch.zeros(1, 2)), eta=0.0),):
        with pytest.raises(ValueError, match="eta > 0"):
            viot.sample(SilentPlane([[0.5, 0.0]]), PULL, method(), particles=8, steps=4, progress=False)


def test_a_token_bias_by_hand_says_which_tokens():
    with pytest.raises(ValueError, match="needs the ids"):
        viot.sample(
            Tokens(),
            lambda s: torch.zeros(len(s)),
            VASR(guide=TokenBias(most=2, theta=torch.zeros(1, 2))),
            particles=8,
            steps=3,
            progress=False,
        )
