"""Distances between weighted sets of points: known values, invariances, and weights that mean repetition."""

import math

import pytest
import torch

from viot.metrics.distances import kernel_mean, median_distance, mmd, moments, sliced_wasserstein, unit_directions
from viot.metrics.spectrum import Spectrum

GEN = torch.Generator().manual_seed(7)
X = torch.randn(60, 3, generator=GEN, dtype=torch.float64)
Y = torch.randn(45, 3, generator=GEN, dtype=torch.float64) * 1.5 + 0.4
COUNTS = torch.randint(0, 4, (60,), generator=GEN)
W, V = torch.rand(60, generator=GEN, dtype=torch.float64), torch.rand(45, generator=GEN, dtype=torch.float64)
DISTANCES = [
    pytest.param(lambda *a: mmd(*a, bandwidth=1.7), id="mmd"),
    pytest.param(sliced_wasserstein, id="sliced W2"),
    pytest.param(lambda *a: sliced_wasserstein(*a, order=1.0), id="sliced W1"),
]


def point(*coordinates):
    return torch.tensor([coordinates], dtype=torch.float64)


def rotation(d, seed=1):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


# -- what every distance must do -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
def test_zero_between_equals_and_positive_between_others(distance):
    assert distance(X, X) == pytest.approx(0, abs=1e-7)
    assert distance(X, X.flip(0), W, W.flip(0)) == pytest.approx(0, abs=1e-7)
    assert distance(X, Y) > 0.05
    # The same points with other weights are another measure.
    assert distance(X, X, W, None) > 0.01


@pytest.mark.parametrize("distance", DISTANCES)
def test_symmetric(distance):
    assert distance(X, Y, W, V) == pytest.approx(distance(Y, X, V, W), rel=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_triangle(distance):
    z = X[:30] - 0.5
    assert distance(X, Y) <= distance(X, z) + distance(z, Y) + 1e-12


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_weight_of_n_is_n_copies(distance):
    repeated = X.repeat_interleave(COUNTS, 0)
    assert distance(X, Y, COUNTS.double(), V) == pytest.approx(distance(repeated, Y, None, V), rel=1e-9)
    # Negative control: without the weights it is another number.
    assert abs(distance(X, Y, None, V) - distance(repeated, Y, None, V)) > 1e-3


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_scale_of_weights_does_not_matter_and_weight_zero_hides_anything(distance):
    plain = distance(X, Y, W, V)
    assert distance(X, Y, 1000 * W, V / 1000) == pytest.approx(plain, rel=1e-9)
    broken, none = torch.cat([X, torch.full((1, 3), math.nan, dtype=torch.float64)]), torch.cat([W, torch.zeros(1, dtype=torch.float64)])
    assert distance(broken, Y, none, V) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_moving_both_alike_changes_nothing(distance):
    # So far from the origin that squares of the coordinates keep only nine digits of the gaps.
    far = torch.full((3,), 3000.0, dtype=torch.float64)
    assert distance(X + far, Y + far, W, V) == pytest.approx(distance(X, Y, W, V), rel=1e-8)


def test_turning_both_alike_changes_nothing():
    q = rotation(3)
    assert mmd(X @ q, Y @ q, W, V, bandwidth=1.7) == pytest.approx(mmd(X, Y, W, V, bandwidth=1.7), rel=1e-10)
    theta = unit_directions(50, 3)
    turned = sliced_wasserstein(X @ q, Y @ q, W, V, directions=theta @ q)
    assert turned == pytest.approx(sliced_wasserstein(X, Y, W, V, directions=theta), rel=1e-10)
    # Negative control: one of them turned alone is somewhere else.
    assert abs(mmd(X @ q, Y, W, V, bandwidth=1.7) - mmd(X, Y, W, V, bandwidth=1.7)) > 1e-4


# -- known values --------------------------------------------------------------------------------------------------------------------------


def test_mmd_of_two_points():
    # |δ_x − δ_y|² = 2 − 2k(x, y)
    assert mmd(point(0.0, 0.0), point(3.0, 4.0), bandwidth=5.0) == pytest.approx(math.sqrt(2 - 2 * math.exp(-0.5)), rel=1e-12)
    assert mmd(point(0.0), point(1e6), bandwidth=1.0) == pytest.approx(math.sqrt(2), rel=1e-12)


def test_mmd_of_a_weighted_pair():
    # (1 − w) δ_0 + w δ_1 against δ_0 is w times the distance of the points.
    pair = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert mmd(pair, point(0.0), weights, bandwidth=1.0) == pytest.approx(0.25 * math.sqrt(2 - 2 * math.exp(-0.5)), rel=1e-12)


def test_kernel_mean_of_gaussians():
    # E k(x, y) for x, y ~ N(0, 1) and bandwidth h: h / √(h² + 2), by midpoints of the quantiles.
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    x = torch.special.ndtri(u)[:, None]
    assert kernel_mean(x, x, bandwidth=1.3) == pytest.approx(1.3 / math.sqrt(1.3**2 + 2), rel=1e-3)


def test_kernel_mean_is_the_double_sum_however_it_is_cut():
    direct = (W[:, None] * V * torch.exp(-torch.cdist(X, Y).square() / (2 * 0.8**2))).sum() / W.sum() / V.sum()
    assert kernel_mean(X, Y, W, V, bandwidth=0.8) == pytest.approx(float(direct), rel=1e-10)
    many = X.repeat(60, 1)
    assert kernel_mean(many, many, bandwidth=0.8) == pytest.approx(kernel_mean(X, X, bandwidth=0.8), rel=1e-10)


@pytest.mark.parametrize("far", [0.0, 5.0, 40.0, 300.0], ids="beyond by {} bandwidths".format)
@pytest.mark.parametrize("bandwidth", [0.2, 1.7])
@pytest.mark.parametrize("d", [1, 2])
def test_the_distance_of_characteristic_functions_is_that_of_all_pairs(d, bandwidth, far):
    x, y = X[:, :d] + 30, Y[:, :d] + 30
    # Some points on both sides of the reference, as far beyond it as the grid still resolves, and farther.
    x = torch.cat([x, y.amin(0) - far * bandwidth - X[:3, :d].abs(), y.amax(0) + far * bandwidth + X[:3, :d].abs()])
    weights = torch.cat([W, torch.ones(6)])
    assert Spectrum(y, V, bandwidth).mmd(x, weights) == pytest.approx(mmd(x, y, weights, V, bandwidth=bandwidth), rel=1e-9)
    assert Spectrum(y, None, bandwidth).mmd(x) == pytest.approx(mmd(x, y, bandwidth=bandwidth), rel=1e-9)


def test_a_spectrum_of_many_points_and_of_three_dimensions(monkeypatch):
    whole = Spectrum(Y[:, :2], V, 1.0)
    assert whole.mmd(Y[:, :2], V) == 0
    monkeypatch.setattr("viot.metrics.spectrum.SOME", 7)
    assert Spectrum(Y[:, :2], V, 1.0).mmd(X[:, :2], W) == pytest.approx(whole.mmd(X[:, :2], W), rel=1e-12)
    with pytest.raises(ValueError, match="one or two dimensions, not 3"):
        Spectrum(Y, V, 1.0)


def test_wasserstein_of_a_translation():
    shift = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    theta = unit_directions(64, 3)
    along = theta @ shift
    assert sliced_wasserstein(X, X + shift, W, W, directions=theta) == pytest.approx(float(along.square().mean().sqrt()), rel=1e-9)
    assert sliced_wasserstein(X, X + shift, directions=theta, order=1.0) == pytest.approx(float(along.abs().mean()), rel=1e-9)


def test_sliced_wasserstein_of_two_points_over_the_sphere():
    # E (θ·e)² = 1/d
    d, n = 30, 20_000
    gap = torch.zeros(1, d, dtype=torch.float64)
    gap[0, 3] = 2.0
    found = sliced_wasserstein(torch.zeros_like(gap), gap, directions=n)
    assert found == pytest.approx(2.0 / math.sqrt(d), rel=5 * math.sqrt(2 / n) / 2)


def test_wasserstein_of_unequal_weights():
    # Mass .3 must go from 0 to 1: W_p = .3^(1/p).
    pair = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    a, b = torch.tensor([0.8, 0.2], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    for p in (1.0, 2.0, 3.0):
        found = sliced_wasserstein(pair, pair, a, b, directions=torch.ones(1, 1, dtype=torch.float64), order=p)
        assert found == pytest.approx(0.3 ** (1 / p), rel=1e-12)


def test_wasserstein_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    theta = unit_directions(5, 3)
    each = [stats.wasserstein_distance((X @ t).numpy(), (Y @ t).numpy(), W.numpy(), V.numpy()) for t in theta]
    assert sliced_wasserstein(X, Y, W, V, directions=theta, order=1.0) == pytest.approx(sum(each) / 5, rel=1e-10)


def test_moments():
    mean, cov = moments(X, COUNTS.double())
    repeated = X.repeat_interleave(COUNTS, 0)
    torch.testing.assert_close(mean, repeated.mean(0))
    torch.testing.assert_close(cov, repeated.T.cov(correction=0))
    assert bool((moments(point(1.0, 2.0))[1] == 0).all())


def test_median_distance():
    line = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    assert median_distance(line) == 2.0
    # Pairs of weights 1 · 10, 1 · 10 and 10 · 10: nearly all pairs are the last two points.
    assert median_distance(line, torch.tensor([1.0, 10.0, 10.0])) == 2.0
    assert median_distance(line, torch.tensor([10.0, 10.0, 1.0])) == 1.0
    assert mmd(X, Y) == pytest.approx(mmd(X, Y, bandwidth=median_distance(Y)), rel=1e-12)
    big = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # |x − y| / √2 is a chi variable with four degrees of freedom, of median 1.832.
    assert median_distance(big, at_most=1000) == pytest.approx(1.832 * math.sqrt(2), rel=0.03)


def test_directions_are_of_length_one_and_fixed():
    theta = unit_directions(20, 7, seed=3)
    torch.testing.assert_close(theta.norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(theta, unit_directions(20, 7, seed=3))
    assert not torch.equal(theta, unit_directions(20, 7, seed=4))


# -- what they say about draws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", DISTANCES)
def test_importance_weights_bring_draws_of_another_law_closer(distance):
    g = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 2, generator=g, dtype=torch.float64)
    target = torch.randn(4000, 2, generator=g, dtype=torch.float64) + 0.5
    weights = torch.exp(draws.sum(1) * 0.5)
    right, plain, wrong = distance(draws, target, weights), distance(draws, target), distance(draws, target, 1 / weights)
    assert 3 * right < plain < wrong


# -- what is refused -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: mmd(X, Y[:, :2], bandwidth=1.0), "same dimension"),
        (lambda: mmd(X[0], Y, bandwidth=1.0), "points must be"),
        (lambda: mmd(X, Y, W[:5], bandwidth=1.0), "as many weights"),
        (lambda: mmd(X, Y, -W, bandwidth=1.0), "≥ 0"),
        (lambda: mmd(X, Y, 0 * W, bandwidth=1.0), "not all 0"),
        (lambda: mmd(X, Y, bandwidth=0.0), "bandwidth"),
        (lambda: mmd(X, X[:1]), "two of positive weight"),
        (lambda: mmd(X / 0, Y, bandwidth=1.0), "finite"),
        (lambda: sliced_wasserstein(X, Y, order=0.5), "order"),
        (lambda: sliced_wasserstein(X, Y, directions=torch.ones(3, 2)), "directions"),
    ],
)
def test_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
