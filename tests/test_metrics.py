"""Distances and diversity of weighted sets: against sums written out, cases done by hand, and what they must tell apart."""

import math

import pytest
import torch

from viot import metrics
from viot.metrics import frechet_distance, mode_mass, pairwise_distance, precision_recall, text
from viot.metrics.distances import moments

G = torch.Generator().manual_seed(0)
X = torch.randn(14, 3, generator=G, dtype=torch.float64)
Y = 1.3 * torch.randn(11, 3, generator=G, dtype=torch.float64) + 0.4
W = torch.rand(14, generator=G, dtype=torch.float64)
V = torch.rand(11, generator=G, dtype=torch.float64)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


# -- precision and recall -------------------------------------------------------------------------------------------------------------


def reach(points, i, k):
    return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]


def inside(point, points, k):
    return any(math.dist(point, points[i]) <= reach(points, i, k) for i in range(len(points)))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_precision_and_recall_written_out(k):
    x, y = X.tolist(), Y.tolist()
    hits = [inside(p, y, k) for p in x], [inside(p, x, k) for p in y]
    assert 0 < sum(hits[0]) < 14 or 0 < sum(hits[1]) < 11, "a case that tests nothing"
    assert precision_recall(X, Y, k) == pytest.approx((sum(hits[0]) / 14, sum(hits[1]) / 11), rel=1e-12)
    shares = [float(w[torch.tensor(h)].sum() / w.sum()) for w, h in zip((W, V), hits, strict=True)]
    assert precision_recall(X, Y, k, W, V) == pytest.approx(shares, rel=1e-12)
    # The other way round they change places.
    assert precision_recall(Y, X, k, V, W) == pytest.approx(shares[::-1], rel=1e-12)


def test_precision_and_recall_by_hand():
    # Balls of the reference (k = 1): 1 around 0 and around 1, 3 around 4. Of x only 9 is outside of them.
    # Balls of x: 0.2 around 0.1 and 0.3, 3 around 6 and 9: 0 is in the first, 4 in that of 6, 1 in none.
    x, y = column(0.1, 0.3, 6.0, 9.0), column(0.0, 1.0, 4.0)
    assert precision_recall(x, y, 1) == pytest.approx((0.75, 2 / 3))
    x, y = column(0.1, 0.3), column(0.0, 1.0, 4.0)
    assert precision_recall(x, y, 1) == pytest.approx((1.0, 1 / 3))
    assert precision_recall(x, y, 1, weights_y=torch.tensor([2.0, 1.0, 1.0]))[1] == pytest.approx(0.5)


def test_copies_have_no_support_and_weight_zero_is_not_there():
    collapsed = torch.zeros(5, 1, dtype=torch.float64)
    y = column(0.0, 0.1, 0.2, 0.3, 0.4)
    # Each copy has three others at distance 0: only the point itself is inside.
    assert precision_recall(collapsed, y) == pytest.approx((1.0, 0.2))
    more = torch.cat([collapsed, column(math.nan, 0.4)])
    assert precision_recall(more, y, weights_x=torch.tensor([1.0] * 5 + [0.0, 0.0])) == pytest.approx((1.0, 0.2))
    assert precision_recall(more[[0, 1, 2, 3, 6]], y)[1] > 0.2


def test_precision_sees_what_is_wrong_and_recall_what_is_missing():
    g = torch.Generator().manual_seed(1)
    target = torch.randn(400, 2, generator=g, dtype=torch.float64)
    same, half = torch.randn(400, 2, generator=g, dtype=torch.float64), torch.randn(400, 2, generator=g, dtype=torch.float64)
    half[:, 0] = half[:, 0].abs()
    elsewhere = torch.cat([same[:200], same[200:] + 30])
    alike, part, wrong = (precision_recall(x, target) for x in (same, half, elsewhere))
    assert min(alike) > 0.9
    assert part[0] > 0.9
    assert part[1] < 0.7
    assert 0.4 < wrong[0] < 0.55


# -- Fréchet's --------------------------------------------------------------------------------------------------------------------------


def test_frechet_of_lines_by_hand():
    # Means 1 and 5, variances 2 and 8 with n − 1: 16 + (√8 − √2)².
    x, y = column(0.0, 2.0), column(3.0, 7.0)
    assert frechet_distance(x, y) == pytest.approx(16 + 2)
    # Weights 3 : 1 of 0 and 4: mean 1, variance 3, over 1 − 10/16 of pairs.
    expected = 16 + (math.sqrt(8) - math.sqrt(3 / (6 / 16))) ** 2
    assert frechet_distance(column(0.0, 4.0), y, torch.tensor([3.0, 1.0])) == pytest.approx(expected)


def test_frechet_with_weights():
    plain = frechet_distance(X, Y)
    (mx, cx), (my, cy) = (X.mean(0), X.T.cov()), (Y.mean(0), Y.T.cov())
    root = torch.linalg.eigvals(cx @ cy).real.sqrt().sum()
    assert plain == pytest.approx(float((mx - my).square().sum() + cx.trace() + cy.trace() - 2 * root), rel=1e-10)
    assert frechet_distance(X, Y, torch.full((14,), 7.0), torch.ones(11)) == pytest.approx(plain, rel=1e-10)
    assert abs(frechet_distance(X, Y, W, V) - plain) > 1e-3
    none = torch.cat([W, torch.zeros(1, dtype=torch.float64)])
    broken = torch.cat([X, torch.full((1, 3), math.inf, dtype=torch.float64)])
    assert frechet_distance(broken, Y, none, V) == pytest.approx(frechet_distance(X, Y, W, V), rel=1e-10)
    assert frechet_distance(X, X, W, W) == pytest.approx(0, abs=1e-6)


def test_importance_weights_bring_a_set_to_another_law():
    g = torch.Generator().manual_seed(2)
    draws, target = torch.randn(4000, 2, generator=g, dtype=torch.float64), torch.randn(4000, 2, generator=g, dtype=torch.float64) + 0.5
    weights = torch.exp(0.5 * draws.sum(1))
    assert 5 * frechet_distance(draws, target, weights) < frechet_distance(draws, target) < frechet_distance(draws, target, 1 / weights)


# -- modes ------------------------------------------------------------------------------------------------------------------------------


def test_mode_masses_by_hand():
    x = torch.tensor([[0.0, 0.1], [0.0, -0.5], [4.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [-4.0, 0.0]])
    shares, outside = mode_mass(x, centres, 0.5)
    assert shares.tolist() == pytest.approx([0.4, 0.2, 0.0])
    assert outside == pytest.approx(0.4)
    shares, outside = mode_mass(x, centres, 0.3, torch.tensor([1.0, 2.0, 3.0, 0.0, 4.0]))
    assert shares.tolist() == pytest.approx([0.1, 0.3, 0.0])
    assert outside == pytest.approx(0.6)
    # A point within reach of two belongs to the nearer one.
    assert mode_mass(x, centres, 100.0)[0].tolist() == pytest.approx([0.6, 0.4, 0.0])


# -- diversity --------------------------------------------------------------------------------------------------------------------------


def test_pairwise_distance_written_out():
    pairs = [(i, j) for i in range(14) for j in range(14) if i != j]
    gaps = {p: math.dist(X[p[0]].tolist(), X[p[1]].tolist()) for p in pairs}
    assert pairwise_distance(X) == pytest.approx(sum(gaps.values()) / len(pairs), rel=1e-12)
    mass = {(i, j): float(W[i] * W[j]) for i, j in pairs}
    assert pairwise_distance(X, W) == pytest.approx(sum(mass[p] * gaps[p] for p in pairs) / sum(mass.values()), rel=1e-12)
    cos = {(i, j): float(X[i] @ X[j] / X[i].norm() / X[j].norm()) for i, j in pairs}
    assert pairwise_distance(X, W, "cosine") == pytest.approx(sum(mass[p] * (1 - cos[p]) for p in pairs) / sum(mass.values()), rel=1e-12)
    assert pairwise_distance(X.repeat(50, 1)[:600]) == pytest.approx(float(torch.pdist(X.repeat(50, 1)[:600]).mean()), rel=1e-9)


def test_one_sample_is_not_diverse():
    assert pairwise_distance(X[:1]) == 0.0
    assert pairwise_distance(X, torch.eye(14)[3]) == 0.0
    assert pairwise_distance(X[:1].repeat(5, 1)) == 0.0
    assert pairwise_distance(column(1.0, 2.0), metric="cosine") == pytest.approx(0, abs=1e-12)
    assert pairwise_distance(column(1.0, -2.0), metric="cosine") == pytest.approx(2)


def test_what_has_moved_is_found_where_it_was():
    assert text.vendi is metrics.vendi
    assert text.cosine is metrics.cosine
    assert metrics.vendi(torch.eye(3), torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(2)
    mean, cov = moments(X, W)
    assert mean.shape == (3,)
    assert cov.shape == (3, 3)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: precision_recall(X, Y, 0), "k ≥ 1"),
        (lambda: precision_recall(X[:3], Y), "more than k points of positive weight, not k = 3, n = 3"),
        (lambda: precision_recall(X, Y[:, :2]), "same dimension"),
        (lambda: frechet_distance(X, Y, torch.eye(14)[0]), "two points of positive weight"),
        (lambda: frechet_distance(X[:1], Y), "n, m ≥ 2"),
        (lambda: mode_mass(X, Y[:, :2], 1.0), r"centres must be \(C, 3\)"),
        (lambda: mode_mass(X, Y, 0.0), "radius is > 0"),
        (lambda: pairwise_distance(X, metric="l1"), "'euclidean' or 'cosine'"),
        (lambda: pairwise_distance(X, W[:3]), "as many weights"),
    ],
)
def test_mistakes_are_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()
