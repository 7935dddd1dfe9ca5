"""Resampling schemes against their stated laws. Groups are the repeats: 20000 of them per estimate; statistical tolerances are 5 standard
errors at fixed seeds, and each kind of test has a scheme or law that it must reject."""

import itertools

import pytest
import torch

from viot import resample
from viot.resample import UNBIASED, counts, get, schemes

G = 20000
ALL = list(schemes)
LARGEST_U = 1 - 2.0**-53

P = torch.tensor([1, 0.8, 0.5, 0.2], dtype=torch.float64)
MASSES = {
    "four": P / P.sum(),
    "odd": torch.tensor([0.05, 0.3, 0.01, 0.24, 0.1, 0.13, 0.17], dtype=torch.float64),
    "halves": torch.tensor([0.125, 0.375, 0.125, 0.375], dtype=torch.float64),
    "uniform": torch.full((5,), 0.2, dtype=torch.float64),
    "two": torch.tensor([0.7, 0.3], dtype=torch.float64),
    "one": torch.ones(1, dtype=torch.float64),
    "heavy": torch.tensor([1e-3, 0.996, 1e-3, 1e-3, 1e-3], dtype=torch.float64),
    "zeros": torch.tensor([0, 0.4, 0, 0.35, 0.25, 0], dtype=torch.float64),
}


def uniforms(name, k, groups=G, seed=0):
    n = get(name).uniforms(k)
    return torch.rand(groups, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw(name, masses, groups=G, seed=0):
    """Counts (groups, K) of repeated draws."""
    return counts(get(name)(masses.expand(groups, -1).clone(), uniforms(name, len(masses), groups, seed)))


def standard_errors(n, expected):
    """How far the means of n (G, K) lie from `expected`, in standard errors; a mean without spread must be right."""
    n = n.double()
    error = (n.std(0) / len(n) ** 0.5).clamp_min(1e-12)
    return ((n.mean(0) - expected) / error).abs().max()


def variance_errors(n, expected):
    """The same for variances; the standard error is that of the sample mean of squared deviations."""
    squares = (n.double() - n.double().mean(0)) ** 2
    error = (squares.std(0) / len(n) ** 0.5).clamp_min(1e-9)
    return ((squares.mean(0) - expected) / error).abs().max()


@pytest.fixture(params=MASSES.values(), ids=MASSES.keys())
def masses(request):
    return request.param


# -- means ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(UNBIASED))
def test_mean_counts(name, masses):
    assert standard_errors(draw(name, masses), len(masses) * masses) < 5


@pytest.mark.parametrize("name", ["fleming_viot", "argmax"])
def test_mean_counts_rejects_biased_schemes(name):
    assert standard_errors(draw(name, MASSES["four"]), 4 * MASSES["four"]) > 20


def test_unbiased_is_the_right_list():
    assert set(ALL) - UNBIASED == {"fleming_viot", "argmax"}


@pytest.mark.parametrize("name", ALL)
def test_counts_sum_to_k_and_ancestors_are_in_range(name, masses):
    k = len(masses)
    ancestors = get(name)(masses.expand(500, -1).clone(), uniforms(name, k, 500, seed=1))
    assert ancestors.shape == (500, k)
    assert ancestors.dtype == torch.int64
    assert 0 <= ancestors.min() <= ancestors.max() < k
    assert (counts(ancestors).sum(-1) == k).all()


@pytest.mark.parametrize("name", ALL)
def test_groups_do_not_meet(name):
    """Different masses side by side give what each gives alone."""
    rows = torch.stack([m.roll(i) for i, m in enumerate([MASSES["odd"]] * 6)])
    u = uniforms(name, 7, 6, seed=2)
    together = get(name)(rows.clone(), u.clone())
    alone = torch.cat([get(name)(rows[i : i + 1].clone(), u[i : i + 1].clone()) for i in range(6)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", ALL)
def test_arguments_are_left_alone(name):
    m, u = MASSES["odd"].expand(3, -1).clone(), uniforms(name, 7, 3)
    m0, u0 = m.clone(), u.clone()
    get(name)(m, u)
    assert torch.equal(m, m0)
    assert torch.equal(u, u0)


# -- variances and bounds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["systematic", "ssp"])
def test_counts_are_within_one(name, masses):
    n, km = draw(name, masses), len(masses) * masses
    assert ((n - km).abs() < 1 + 1e-9).all()
    # An integer K m leaves no choice.
    whole = (km - km.round()).abs() < 1e-9
    assert (n[:, whole] == km[whole].round()).all()


@pytest.mark.parametrize("name", ["multinomial", "stratified"])
def test_counts_within_one_rejects(name):
    m = MASSES["odd"]
    assert ((draw(name, m) - 7 * m).abs() > 1.05).any()


def test_stratified_counts_are_within_two(masses):
    assert ((draw("stratified", masses) - len(masses) * masses).abs() < 2).all()
    assert ((draw("multinomial", MASSES["halves"]) - 4 * MASSES["halves"]).abs() >= 2).any()


@pytest.mark.parametrize("name", ["systematic", "ssp"])
def test_variance_is_that_of_a_rounding(name, masses):
    d = len(masses) * masses - (len(masses) * masses + 1e-9).floor()
    assert variance_errors(draw(name, masses), (d * (1 - d)).clamp_min(0)) < 5


def test_variance_of_multinomial(masses):
    expected = len(masses) * masses * (1 - masses)
    assert variance_errors(draw("multinomial", masses), expected) < 5


def test_variance_rejects():
    m = MASSES["odd"]
    d = 7 * m - (7 * m).floor()
    assert variance_errors(draw("multinomial", m), d * (1 - d)) > 20
    assert variance_errors(draw("systematic", m), 7 * m * (1 - m)) > 20


def test_residual_keeps_the_floor(masses):
    km = len(masses) * masses
    floor = (km + 1e-9).floor()
    n = draw("residual", masses)
    assert (n >= floor).all()
    left = km.sum() - floor.sum()
    rest = (km - floor).clamp_min(0) / left.clamp_min(1e-9)
    assert variance_errors(n, left * rest * (1 - rest)) < 5


def test_residual_floor_rejects():
    m = MASSES["halves"]
    assert (draw("multinomial", m) < (4 * m).floor()).any()


# -- killing and Fleming–Viot ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["killing", "fleming_viot"])
def test_survivors_keep_their_slots(name, masses):
    k = len(masses)
    u = uniforms(name, k)
    ancestors = get(name)(masses.expand(G, -1).clone(), u)
    survives = u[:, :k] < masses / masses.max()
    slots = torch.arange(k).expand(G, k)
    assert torch.equal(ancestors[survives], slots[survives])
    assert survives[:, masses.argmax()].all()


def test_fleming_viot_donors_are_survivors():
    u = uniforms("fleming_viot", 4)
    ancestors = get("fleming_viot")(MASSES["four"].expand(G, -1).clone(), u)
    survives = u[:, :4] < P
    assert survives.gather(1, ancestors).all()
    # Of killing that is not so: it draws donors by mass among all.
    ancestors = get("killing")(MASSES["four"].expand(G, -1).clone(), u)
    assert not survives.gather(1, ancestors).all()


def fleming_viot_means(p):
    """E[N_i | somebody survives]: each survivor has (K − S)/S adopted children beside itself, in expectation."""
    k, total = len(p), 0.0
    found = torch.zeros(k, dtype=torch.float64)
    for alive in itertools.product([0, 1], repeat=k):
        s = torch.tensor(alive, dtype=torch.float64)
        if not s.any():
            continue
        chance = torch.where(s > 0, p, 1 - p).prod()
        total += chance
        found += chance * s * k / s.sum()
    return found / total


def test_fleming_viot_expectation_at_finite_k():
    expected = fleming_viot_means(P)
    assert torch.allclose(expected, torch.tensor([1.8, 1.253, 0.693, 0.253], dtype=torch.float64), atol=5e-4)
    n = draw("fleming_viot", P / P.sum(), groups=5 * G)
    assert standard_errors(n, expected) < 5
    assert standard_errors(n, 4 * P / P.sum()) > 50


def repeated_means(copies):
    """E[N] of the first four when P is repeated: p_i K E[1 / (1 + S without i)], S Poisson–binomial, plus the certain survivors."""
    p = P.repeat(copies)
    k, found = len(p), []
    for i in range(4):
        law = torch.ones(1, dtype=torch.float64)
        for q in torch.cat([p[:i], p[i + 1 :]]):
            law = torch.cat([law * (1 - q), torch.zeros(1)]) + torch.cat([torch.zeros(1, dtype=torch.float64), law * q])
        found.append(p[i] * k * (law / (1 + torch.arange(k))).sum())
    return torch.stack(found)


def test_fleming_viot_bias_vanishes_like_one_over_k():
    assert torch.allclose(repeated_means(1), fleming_viot_means(P))
    target = P / P.mean()
    bias = torch.stack([(repeated_means(c) - target).abs().max() for c in (4, 8, 16, 32)])
    assert ((bias[:-1] / bias[1:] - 2).abs() < 0.15).all()
    k = 16
    n = draw("fleming_viot", (P / P.sum() / 4).repeat(4))
    assert standard_errors(n, repeated_means(4).repeat(4)) < 5
    assert standard_errors(n, target.repeat(4)) > 5
    assert n.shape[1] == k


def test_donors_among_are_uniform():
    alive = torch.tensor([True, False, True, False, True]).expand(G, 5)
    u = torch.rand(G, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    donors = resample.donors_among(alive, u)
    assert standard_errors(counts(donors), torch.tensor([5 / 3, 0, 5 / 3, 0, 5 / 3], dtype=torch.float64)) < 5
    assert (resample.donors_among(alive[:1], torch.full((1, 5), LARGEST_U, dtype=torch.float64)) == 4).all()


# -- argmax ---------------------------------------------------------------------------------------------------------------------------


def test_argmax_takes_the_first_of_equals():
    m = torch.tensor([[0.2, 0.4, 0.4], [1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5]], dtype=torch.float64)
    ancestors = get("argmax")(m, torch.zeros(3, 0))
    assert ancestors.tolist() == [[1] * 3, [0] * 3, [1] * 3]


# -- edges ----------------------------------------------------------------------------------------------------------------------------


EDGES = {
    "zeros": [0, 0.4, 0, 0.35, 0.25, 0],
    "one holds all": [0, 0, 1, 0, 0, 0],
    "first holds all": [1, 0, 0, 0, 0, 0],
    "last holds all": [0, 0, 0, 0, 0, 1],
    "tiny": [1e-300, 0.5, 1e-300, 0.5, 0, 1e-300],
    "subnormal": [5e-324, 1, 0, 0, 5e-324, 0],
    "tenths": [0.1] * 9 + [0.1, 0, 0],
    "thirds": [1 / 3, 1 / 3, 0, 1 / 3, 0],
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("edge", EDGES)
def test_zero_masses_have_no_children(name, edge):
    m = torch.tensor(EDGES[edge], dtype=torch.float64)
    u = uniforms(name, len(m), 2000, seed=4)
    # The ends of [0, 1) in some groups, in all of their numbers and in single ones.
    if u.shape[1]:
        u[0], u[1] = LARGEST_U, 2.0**-53
        for i in range(u.shape[1]):
            u[2 + 2 * i, i], u[3 + 2 * i, i] = 0.0, LARGEST_U
    ancestors = get(name)(m.expand(2000, -1).clone(), u)
    n = counts(ancestors)
    assert (n.sum(-1) == len(m)).all()
    assert (n[:, m == 0] == 0).all()
    inner = n[2 + 2 * u.shape[1] :]
    assert (inner[:, m < 1e-290] == 0).all()  # 2000 draws will not meet 1e-300 either, unless a number is 0 exactly
    if "all" in edge:
        assert (n[:, m.argmax()] == len(m)).all()


@pytest.mark.parametrize("name", ALL)
def test_cumulative_sums_that_round_past_one(name):
    m = torch.rand(400, 257, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    m[:, -3:] = 0  # mass-less particles behind the last that has some
    m /= m.sum(-1, keepdim=True)
    last = m.cumsum(-1)[:, -1]
    assert (last > 1).any()
    assert (last < 1).any()
    for end in (LARGEST_U, 2.0**-53, None):
        u = uniforms(name, 257, 400, seed=6) if end is None else torch.full((400, get(name).uniforms(257)), end, dtype=torch.float64)
        n = counts(get(name)(m.clone(), u))
        assert (n.sum(-1) == 257).all()
        assert (n[:, -3:] == 0).all()
        if name in ("systematic", "ssp"):
            assert ((n - 257 * m).abs() < 1 + 1e-9).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("k", [1, 2, 3, 64, 65])
def test_any_number_of_particles(name, k):
    m = torch.rand(50, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    m /= m.sum(-1, keepdim=True)
    n = counts(get(name)(m, uniforms(name, k, 50)))
    assert (n.sum(-1) == k).all()
    if k == 1:
        assert (n == 1).all()


# -- dependence between counts --------------------------------------------------------------------------------------------------------


def covariances(n):
    """Covariances (K, K) of the counts and their standard errors."""
    gap = n.double() - n.double().mean(0)
    products = gap[:, :, None] * gap[:, None, :]
    return products.mean(0), products.std(0) / len(n) ** 0.5


@pytest.mark.parametrize("edge", ["four", "odd", "halves"])
def test_ssp_counts_are_negatively_associated(edge):
    cov, error = covariances(draw("ssp", MASSES[edge], groups=3 * G))
    apart = ~torch.eye(len(cov), dtype=torch.bool)
    assert (cov[apart] < 5 * error[apart] + 1e-12).all()
    # Monotone functions of two disjoint sets of particles, not only single ones.
    n = draw("ssp", MASSES[edge], groups=3 * G, seed=1).double()
    half = n.shape[1] // 2
    low, high = n[:, :half].amax(1), n[:, half:].amax(1)
    product = (low - low.mean()) * (high - high.mean())
    assert product.mean() < 5 * product.std() / len(n) ** 0.5 + 1e-12


def test_negative_association_rejects_systematic():
    cov, error = covariances(draw("systematic", MASSES["halves"]))
    assert cov[0, 2] > 50 * error[0, 2]


def test_systematic_reversed_has_the_same_joint_law():
    """Counts at U from one end are counts at 1 − U from the other; so the joint law is the same, which no other reordering gives."""
    u = (torch.arange(G, dtype=torch.float64)[:, None] + 0.5) / G  # symmetric about 1/2
    for m in (MASSES["odd"], MASSES["four"], MASSES["heavy"]):
        m = m.expand(G, -1)
        forward = counts(get("systematic")(m.clone(), u.clone()))
        backward = counts(get("systematic")(m.flip(-1).clone(), (1 - u).clone())).flip(-1)
        # A midpoint may fall on an edge by rounding.
        assert (forward != backward).any(-1).sum() <= 2 * m.shape[1]

    def joint(order):
        n = counts(get("systematic")(MASSES["halves"][order].expand(G, -1).clone(), u.clone()))
        n = n[:, torch.argsort(torch.tensor(order))]
        return {tuple(row) for row in n.tolist()}

    assert joint([0, 1, 2, 3]) == joint([3, 2, 1, 0])
    assert joint([0, 1, 2, 3]) != joint([0, 2, 1, 3])


def test_systematic_variance_does_not_depend_on_order():
    m = torch.tensor([0.05, 0.3, 0.11, 0.24, 0.3], dtype=torch.float64)
    u = (torch.arange(G, dtype=torch.float64)[:, None] + 0.5) / G
    d = 5 * m - (5 * m).floor()
    for order in itertools.permutations(range(5)):
        order = torch.tensor(order)
        n = counts(get("systematic")(m[order].expand(G, -1).clone(), u.clone())).double()
        # The grid of U is exact up to its spacing at each edge.
        assert ((n.var(0, correction=0) - (d * (1 - d))[order]).abs() < 4 / G + 1e-9).all()


# -- names ----------------------------------------------------------------------------------------------------------------------------


def test_names():
    assert get("fleming-viot") is get("fleming_viot")
    with pytest.raises(ValueError, match=r"unknown resampling scheme 'systemtic'. Did you mean 'systematic'\? Known: argmax, .*systematic"):
        get("systemtic")
    with pytest.raises(ValueError, match="already"):
        schemes.add("ssp", "again")(lambda m, u: m)


def test_ancestors_of_is_the_inverse_of_counts():
    n = torch.tensor([[0, 3, 0, 1], [1, 1, 1, 1], [4, 0, 0, 0]])
    ancestors = resample.ancestors_of(n)
    assert ancestors.tolist() == [[1, 1, 1, 3], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert torch.equal(counts(ancestors), n)
