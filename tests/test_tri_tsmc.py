"""TRI-TSMC: the trust region, learned proposals whose evidence is unbiased in every round, and samplers of zero variance in closed form."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from exact import MODEL, REWARD, law, run, z_scores
from helpers import Line, differing, quiet
from masked import MarkovTokens, frequency_scores

import viot
from viot import cost, trust, weights
from viot.methods import URGE, Importance, TriTSMC
from viot.models.gaussian import GaussianMixture
from viot.particles import State
from viot.rewards import Quadratic
from viot.twists import THETA, VJP, Affine, Direction, Feature, Neural, Shift, Slope, TokenBias, Twist

STEPS = 8
PLANE = GaussianMixture([[0.5, -0.5]], [[[1.0, 0.6], [0.6, 0.8]]])
WORDS = MarkovTokens()
IDS = torch.tensor([[0, 1, 2]])


def letters(texts):
    return torch.tensor([0.8 * t.count("c") - 0.5 * (t[0] == "b") for t in texts])


def tokens(method, *, model=WORDS, reward=letters, groups=400, particles=32, steps=4, lam=1.0, seed=0):
    with quiet():
        return viot.sample(model, reward, method, particles=particles, groups=groups, steps=steps, lam=lam, seed=seed, progress=False)


def logs(groups=40, n=50, scale=3.0, seed=0):
    """Log-weights of all degrees of evenness."""
    gen = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.01, scale, groups, dtype=torch.float64)
    return spread[:, None] * torch.randn(groups, n, generator=gen, dtype=torch.float64) + 7.0


# -- T1, T2: the trust region -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.05, 0.3, 1.0, 3.0])
def test_t1_the_temperature(nats):
    f = logs()
    tau, other = trust.tempered(f, nats), trust.tempered(f, nats, "dual")
    assert torch.allclose(tau, other, rtol=1e-5, atol=1e-6)
    whole = trust.spent(f, torch.ones(len(f), dtype=torch.float64))
    assert torch.equal(tau == 1, whole <= nats)
    assert bool((whole <= nats).any())
    binds = whole > nats
    assert bool(binds.any()) or nats == 3.0
    assert torch.allclose(trust.spent(f, tau)[binds], torch.full_like(tau[binds], nats), rtol=1e-10)
    # A constant means nothing.
    for c in (-1e3, 5.0, 1e3):
        assert torch.allclose(trust.tempered(f + c, nats), tau, rtol=1e-9)
        assert torch.allclose(trust.tempered(f + c, nats, "dual"), tau, rtol=1e-5, atol=1e-6)
    # One group at a time, the same bit for bit.
    for g in (0, 17, 39):
        assert torch.equal(trust.tempered(f[g : g + 1], nats)[0], tau[g])
        assert torch.equal(trust.tempered(f[g : g + 1], nats, "dual")[0], other[g])


def test_t1_more_nats_go_further():
    f = logs()
    taus = torch.stack([trust.tempered(f, nats) for nats in (0.01, 0.1, 0.5, 1.0, 2.0, 4.0)])
    assert bool((taus[1:] >= taus[:-1]).all())
    assert bool((taus[-1] > taus[0]).any())
    assert bool((trust.tempered(f, 4.0) == 1).all()), "log 50 = 3.9 nats are all there is"


@pytest.mark.parametrize("nats", [0.1, 1.0])
def test_t1_the_temperature_minimises_the_dual(nats):
    """ℓ = 1/τ − 1 is where ℓ ε + (1 + ℓ) log mean w^{1/(1 + ℓ)} is least, among ℓ ≥ 0 (equation 4.7)."""
    f = logs(groups=10)
    ell = 1 / trust.tempered(f, nats) - 1
    least = trust.dual(f, nats, ell)
    by_hand = ell * nats + (1 + ell) * (f / (1 + ell[:, None])).exp().mean(-1).log()
    assert torch.allclose(least, by_hand, rtol=1e-12)
    for other in torch.cat([torch.linspace(0, 3, 301), torch.logspace(-6, 4, 200)]).double():
        assert bool((trust.dual(f, nats, other.expand(10)) >= least - 1e-9).all())


def test_t1_what_is_impossible_has_no_weight():
    f = logs(groups=12, n=64)
    f[:, ::4] = -torch.inf
    for nats in (0.2, 0.5, 1.5):
        tau = trust.tempered(f, nats)
        assert torch.allclose(trust.tempered(f, nats, "dual"), tau, rtol=1e-5, atol=1e-6)
        spent = trust.spent(f, tau)
        least = math.log(64 / 48)
        # Those that remain are fewer: so much has been spent before anything is tempered.
        if nats < least:
            assert bool((tau < 1e-6).all())
            assert torch.allclose(spent, torch.full_like(spent, least))
        else:
            assert bool((spent <= nats * (1 + 1e-9)).all())
        assert bool(((tau == 1) | (spent >= min(nats, least) - 1e-9)).all())
    one = torch.full((1, 8), -torch.inf, dtype=torch.float64)
    one[0, 3] = 5.0
    assert trust.spent(one, torch.ones(1)) == pytest.approx(math.log(8))
    assert bool(trust.tempered(torch.full((1, 8), -torch.inf, dtype=torch.float64), 1.0).isfinite().all())


def test_t2_the_distance_from_uniform():
    """0 ≤ KL ≤ log N, non-decreasing in τ, and W is as even as N exp(−KL) equal weights."""
    f = logs()
    before = torch.zeros(len(f), dtype=torch.float64)
    for t in torch.linspace(0, 1, 11):
        tau = torch.full((len(f),), float(t), dtype=torch.float64)
        kl = trust.spent(f, tau)
        assert bool((kl >= before - 1e-12).all())
        assert bool((kl <= math.log(50) + 1e-12).all())
        w = (tau[:, None] * f).softmax(-1)
        entropy = -(w * w.clamp_min(1e-300).log()).sum(-1)
        assert torch.allclose(entropy.exp(), 50 * (-kl).exp(), rtol=1e-9)
        before = kl
    # d KL / d τ = τ Var_W(f)
    tau = torch.full((len(f),), 0.4, dtype=torch.float64)
    slope = (trust.spent(f, tau + 1e-5) - trust.spent(f, tau - 1e-5)) / 2e-5
    w = (0.4 * f).softmax(-1)
    var = (w * f.square()).sum(-1) - (w * f).sum(-1).square()
    assert torch.allclose(slope, 0.4 * var, rtol=1e-4, atol=1e-7)


def test_t2_the_cap_where_the_distance_is_not_monotone():
    """The largest step found never lies beyond the cap, whatever the shape of the way."""

    def bumpy(theta):
        return (3 * (4 * theta[:, 0]).sin().square() + theta[:, 0] / 5).abs()

    old, new = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([[0.1], [0.8], [2.0]], dtype=torch.float64)
    at, share = trust.capped(bumpy, old, new, 0.4)
    assert bool((bumpy(at) <= 0.4 * (1 + 1e-6)).all())
    assert bool((share > 0).all())


# -- T3: the whole loop on a chain whose optimum the family holds -----------------------------------------------------------------------


def training(population, name):
    return population.training[name][:, 0].tolist()


@pytest.mark.parametrize(("lam", "eta"), [(1.0, 1.0), (1.0, 0.5), (5.0, 1.0), (5.0, 0.5)])
def test_t3_quadratic_reward_of_a_linear_chain(lam, eta):
    """4000 particles per round: the variance falls to noise, the evidence is that of the chain; at η = ½ x_T must move as well."""
    found = run(TriTSMC(twist="affine", rounds=4, train=0.8, eta=eta), groups=1, particles=20_000, lam=lam)
    variance, tau, beta = training(found, "variance"), training(found, "tau"), training(found, "beta")
    assert variance[0] > variance[1] > variance[2]
    assert variance[0] > 2
    assert variance[-1] < 0.05
    log_z = math.log(law(eta=eta, lam=lam).z)
    assert found.log_z.item() == pytest.approx(log_z, abs=0.01)
    assert training(found, "log_z")[-1] == pytest.approx(log_z, abs=0.01)
    assert training(found, "ess")[-1] > 0.95
    assert found.ess.item() > 0.95 * 4000
    if lam == 5:
        assert tau[0] < 0.7, "the KL budget binds in the first round"
        assert training(found, "moved")[0] == pytest.approx(1.0, rel=1e-5), "and so does the cap"
    assert tau[-1] == 1
    reached = 0.0
    for t, b in zip(tau, beta, strict=True):
        reached += t * (1 - reached)
        assert b == pytest.approx(reached)


@dataclass(frozen=True)
class Watched(TriTSMC):
    """Keeps the weights that each round fits to."""

    def learned(self, problem, state):
        after = super().learned(problem, state)
        now = int(state.group["round"][0])
        f = weights.tilt(REWARD(problem.rows(state.x)).view(state.log_w.shape), problem.lam) + state.log_w
        assert torch.allclose(after.group["rounds.log_z"][:, now], weights.log_mean_exp(f))
        assert torch.allclose(FITTED[-1], (after.group["rounds.tau"][:, now, None] * f).softmax(-1), rtol=1e-9)
        return after

    def fitted(self, twist, statistics, w, old, alive):
        FITTED.append(w)
        return super().fitted(twist, statistics, w, old, alive)


FITTED: list = []


def test_t3_the_weights_of_a_fit_are_tempered():
    """W ∝ exp(τ f), and no round's are further than its budget from uniform."""
    FITTED.clear()
    found = run(Watched(nats=0.4), groups=5, particles=200, lam=4.0)
    assert len(FITTED) == 3
    kl = torch.stack([math.log(w.shape[1]) + (w * w.log()).sum(-1) for w in FITTED])
    assert bool((kl <= 0.4 * (1 + 1e-9)).all())
    assert bool((found.training["tau"][0] < 1).all())
    assert torch.allclose(kl[0], torch.full_like(kl[0], 0.4))


def test_t3_both_solvers_learn_the_same():
    one, other = (run(TriTSMC(twist="affine", solver=s), groups=2, particles=600, lam=5.0) for s in ("bisection", "dual"))
    for name in ("tau", "variance", "log_z", "moved"):
        assert torch.allclose(one.training[name], other.training[name], rtol=1e-4, atol=1e-5)
    assert bool((one.training["tau"][0] < 1).all())


# -- T4: linear rewards -----------------------------------------------------------------------------------------------------------------

SLANT = torch.tensor([0.8, -0.3], dtype=torch.float64)


def slanted(x):
    return x.double() @ SLANT


def log_z_of_slant(eta, steps=STEPS):
    known = PLANE.chain_law(steps, eta)
    return float(SLANT @ known.mean + SLANT @ known.cov @ SLANT / 2)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_t4_linear_reward(eta):
    """A free shift is the optimum, of a few thousandths of variance after one round, and log Z = c·m + cᵀVc/2. One slope cannot quite."""
    for twist, least in ((Shift(), 0.02), (Slope(buckets=4), 0.2), (Slope(), 0.2)):
        method = TriTSMC(twist=twist, train=0.8, eta=eta)
        found = viot.sample(PLANE, slanted, method, particles=20_000, groups=1, steps=STEPS, progress=False)
        variance = training(found, "variance")
        assert variance[0] > 0.25
        assert max(variance[1:]) < least, twist
        assert max(variance[1:]) < 0.6 * variance[0], twist
        # The shift's optimum is of zero variance, the estimate of the evidence with it.
        assert found.log_z.item() == pytest.approx(log_z_of_slant(eta), abs=0.01 if least < 0.1 else 0.03)


# -- T5: zero variance in closed form ---------------------------------------------------------------------------------------------------


def chain(model, eta, steps=STEPS):
    """(A, B, std) of each step m' = A m + B, by hand; the last one has no noise."""
    grid, d = model.grid(steps), model.event_shape[0]
    eye, mu, cov = torch.eye(d, dtype=torch.float64), model.law.means[0], model.law.covs[0]
    out = []
    for j in range(steps):
        a_t, s_t, a_s, s_s = grid.coeffs(j)
        gain = a_t * cov @ torch.linalg.inv(a_t**2 * cov + s_t**2 * eye)
        std = eta * s_s * math.sqrt(max(0.0, 1 - (a_t * s_s / (a_s * s_t)) ** 2))
        toward = math.sqrt(max(0.0, s_s**2 - std**2)) / s_t
        keep = a_s - toward * a_t
        out.append((keep * gain + toward * eye, keep * (mu - gain @ mu * a_t), std))
    return out


def best_affine(model, eta, precision, center):
    """θ of the optimal twist of r = −½ p (x − c)² in one dimension, and log Z: V_j(x) = log E exp V_{j+1}, backwards from V = r."""
    p, q, r = precision, precision * center, -precision * center**2 / 2
    table = []
    for a, b, std in reversed([*((a.item(), b.item(), s) for a, b, s in chain(model, eta))]):
        v = 1 / (1 + p * std**2)
        table.append([v * std * (q - p * b), -v * std * p * a, math.log(v)] if std else [0.0, 0.0, 0.0])
        # −½ p x² + q x + r, averaged over N(m, std²), then m = a x + b.
        p, q, r = p * v, q * v, r + q * q * std**2 * v / 2 + math.log(v) / 2
        p, q, r = p * a * a, a * (q - p * b), r + q * b - p * b * b / 2
    v = 1 / (1 + p)
    table = [*table[::-1], [v * q, 0.0, math.log(v)]]
    return torch.tensor(table, dtype=torch.float64).flatten()[None], r + q * q * v / 2 + math.log(v) / 2


def constant(population, log_z):
    """How far the log-weights are from all being log Z."""
    n = population.log_weights.shape[1]
    return float((population.log_weights + math.log(n) + population.log_z[:, None] - log_z).abs().max())


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("lam", [1.0, 4.0])
def test_t5_quadratic_reward(eta, lam):
    theta, log_z = best_affine(MODEL, eta, 2.0 * lam, 1.5)
    assert log_z == pytest.approx(MODEL.chain_law(STEPS, eta).tilt(1.5, 2.0, lam)[1], abs=1e-12)

    def found(theta):
        return run(TriTSMC(twist=Affine(theta=theta), rounds=0, schedule=(), eta=eta), groups=3, particles=50, lam=lam)

    assert constant(found(theta), log_z) < 1e-10
    # Every part of it is needed, x_T's own as well.
    for step in (0, STEPS // 2, STEPS - 2, STEPS):
        for entry in (0, 1, 2)[:: 2 if step == STEPS else 1]:
            wrong = theta.clone()
            wrong[0, 3 * step + entry] += 0.01
            assert constant(found(wrong), log_z) > 1e-4, (step, entry)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_t5_linear_reward(eta):
    """b_j = std_j Q_{j+1} with Q = Aᵀ Q from Q = c backwards, in two dimensions."""
    q, rows = SLANT, []
    for a, _, std in reversed(chain(PLANE, eta)):
        rows.append(std * q)
        q = a.T @ q
    theta = torch.stack([*rows[::-1], q]).flatten()[None]

    def found(theta):
        method = TriTSMC(twist=Shift(theta=theta), rounds=0, schedule=(), eta=eta)
        return viot.sample(PLANE, slanted, method, particles=50, groups=2, steps=STEPS, progress=False)

    assert constant(found(theta), log_z_of_slant(eta)) < 1e-10
    for entry in (0, 7, -1):
        wrong = theta.clone()
        wrong[0, entry] += 0.01
        assert constant(found(wrong), log_z_of_slant(eta)) > 1e-4


def test_t5_independent_letters():
    """θ = λ f where the reward is Σ f(letter) and letters are independent: every path weighs log Z = L log Σ p exp(λ f)."""
    p, f, lam = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, -0.6, 1.1], dtype=torch.float64), 1.3
    model = MarkovTokens(p.tolist(), [p.tolist()] * 3, length=4)

    def reward(texts):
        return torch.stack([f[["abc".index(c) for c in t]].sum() for t in texts])

    log_z = 4 * float((p * (lam * f).exp()).sum().log())
    assert log_z == pytest.approx(math.log(model.tilted(reward, 5, lam)[1]), abs=1e-12)

    def found(theta, twist=None):
        method = TriTSMC(twist=replace(twist or TokenBias(most=3, ids=IDS), theta=theta[None]), rounds=0, schedule=())
        return tokens(method, model=model, reward=reward, groups=2, steps=5, lam=lam)

    assert constant(found(lam * f), log_z) < 1e-10
    # The same in other words, and up to a constant.
    assert constant(found(lam * f + 3), log_z) < 1e-10
    assert constant(found(torch.tensor([lam], dtype=torch.float64), Feature(phi=f)), log_z) < 1e-10
    assert constant(found(torch.tensor([1.0]), Feature()), log_z) < 1e-6, "what a fill gains is what the letter is worth"
    order = torch.tensor([[2, 0, 1, -1]])
    assert constant(found((lam * f)[order[0].clamp_min(0)], TokenBias(most=4, ids=order)), log_z) < 1e-10
    assert constant(found(lam * f + torch.tensor([0.01, 0.0, 0.0])), log_z) > 1e-4
    assert constant(found(torch.tensor([1.01 * lam]), Feature(phi=f)), log_z) > 1e-4


# -- T6: the escort path ----------------------------------------------------------------------------------------------------------------


def test_t6_the_escort_path():
    """On a finite toy: log(1 + χ²(Π ‖ q_β)) = ψ(β) + ψ(2 − β) − 2 ψ(1) falls to 0, the residual variance is (1 − β)² λ² Var_β r."""
    r = torch.randn(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    lam, before, beta, taus = 3.0, math.inf, torch.zeros(1, dtype=torch.float64), []

    def psi(b):
        return weights.log_mean_exp(b * lam * r[None]).item()

    for b in torch.linspace(0, 1, 11, dtype=torch.float64).tolist():
        gap = psi(b) + psi(2 - b) - 2 * psi(1)
        assert -1e-12 <= gap <= before + 1e-12
        before = gap
        q, target = (b * lam * r).softmax(0), (lam * r).softmax(0)
        assert gap == pytest.approx((target**2 / q).sum().log().item(), abs=1e-10)
        ratio = (target / q).log()
        variance = (q * ratio**2).sum() - (q * ratio).sum() ** 2
        spread = (q * r**2).sum() - (q * r).sum() ** 2
        assert variance.item() == pytest.approx((1 - b) ** 2 * lam**2 * spread.item(), abs=1e-10)
        if b == 0:
            # Of even draws of the toy itself this is what the effective sample size measures.
            assert gap == pytest.approx(-math.log(weights.ess(lam * r[None]).item() / 200), abs=1e-10)
    assert before == pytest.approx(0, abs=1e-12)
    # The rounds' own way along it: each goes one nat further at most, and they arrive.
    for _ in range(10):
        q = (beta * lam * r).softmax(0)
        # A sample of q_β whose empirical law is nearly q_β itself: quantiles.
        at = torch.searchsorted(q.cumsum(0), (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).clamp_max(199)
        tau = trust.tempered(((1 - beta) * lam * r)[at][None], 0.5)
        taus.append(tau.item())
        beta = beta + tau * (1 - beta)
    assert taus[0] < 1
    assert taus == sorted(taus)
    assert beta.item() == 1


# -- T7: without learning ---------------------------------------------------------------------------------------------------------------


def test_t7_without_rounds_nothing_but_the_population():
    """No rounds and no parameters: importance weighting without a schedule, and with one steering by differences, as URGE undriven."""
    assert differing(run(TriTSMC(rounds=0, schedule=()), groups=20), run(Importance(), groups=20)) == []
    assert differing(tokens(TriTSMC(rounds=0, schedule=()), groups=20), tokens(Importance(), groups=20)) == []
    for more in (
        {"schedule": 3, "ess_threshold": None},
        {"schedule": "every"},
        {"schedule": TriTSMC().schedule, "resampling": "multinomial"},
    ):
        found, other = run(TriTSMC(rounds=0, **more), groups=20, lam=3.0), run(URGE(path="value", **more), groups=20, lam=3.0)
        assert differing(found, other) == []
        assert found.trace["deaths"].sum() > 0
    assert differing(tokens(TriTSMC(rounds=0, schedule="every"), groups=20, lam=3.0), tokens(URGE(path="value"), groups=20, lam=3.0)) == []


def test_t7_a_twist_of_zeros_is_no_twist():
    """Written out parameters of 0 propose from the model: the same draws, the same weights."""
    plain = run(TriTSMC(rounds=0), groups=10)
    for twist in (Slope(theta=torch.zeros(1, 1)), Shift(theta=torch.zeros(1, 9)), Affine(theta=torch.zeros(1, 27))):
        found = run(TriTSMC(rounds=0, twist=twist), groups=10)
        # The kernel adds in another order where it is given a shift.
        assert torch.allclose(found.rewards, plain.rewards, rtol=0, atol=1e-12)
        assert torch.allclose(found.log_weights, plain.log_weights, rtol=0, atol=1e-12)


# -- T8: unbiased in every round --------------------------------------------------------------------------------------------------------


def round_scores(population, z):
    """How many standard errors the mean of each round's estimate lies from Z, (R,)."""
    found = population.training["log_z"].exp()
    return (found.mean(1) - z) / (found.std(1) / found.shape[1] ** 0.5)


SMALL = {
    "slope": TriTSMC(),
    "slope, eta .5": TriTSMC(eta=0.5),
    "slope, one round": TriTSMC(rounds=1),
    "slope, tight": TriTSMC(nats=0.2, cap=0.1),
    "slope, no ridge": TriTSMC(twist=Slope(ridge=0.0)),
    "slope, buckets": TriTSMC(twist=Slope(buckets=4)),
    "slope, every step": TriTSMC(schedule="every", ess_threshold=None),
    "slope, multinomial": TriTSMC(schedule=2, ess_threshold=None, resampling="multinomial"),
    "slope, rollout": TriTSMC(value="rollout", ess_threshold=0.9),
    "vjp": TriTSMC(twist="vjp"),
    "direction": TriTSMC(twist="direction"),
    "shift": TriTSMC(twist="shift"),
    "affine": TriTSMC(twist=Affine(ridge=20.0), cap=0.2),
    "neural": TriTSMC(twist=Neural(hidden=6, epochs=10)),
}


@pytest.mark.parametrize("name", SMALL)
def test_t8_unbiased_in_every_round(name):
    """Eight particles train, 24 answer; a thousand groups of each learn a θ of their own."""
    method = SMALL[name]
    found = run(method, groups=300 if name == "neural" else 1000, particles=48)
    truth = law(eta=method.eta)
    assert found.exact
    assert round_scores(found, truth.z).abs().max() < 4
    assert z_scores(found, truth).abs().max() < 4
    assert found.training["moved"].max() > 0.05, "something was learned"
    assert found.nfe <= len(found.log_z) * 48 * STEPS
    if method.ess_threshold is None or method.ess_threshold > 0.5:
        assert found.trace["deaths"].sum() > 0


@pytest.mark.parametrize("lam", [0.3, 3.0, -0.2])
def test_t8_other_strengths(lam):
    for method in (TriTSMC(), TriTSMC(schedule="every", ess_threshold=0.99)):
        found = run(method, groups=1000, particles=48, lam=lam)
        assert round_scores(found, law(lam=lam).z).abs().max() < 4
        assert z_scores(found, law(lam=lam)).abs().max() < 4


LEXICON = torch.tensor([0.0, -0.5, 1.0])


@pytest.mark.parametrize("twist", [TokenBias(), Feature(phi=LEXICON), Feature()], ids=["tokens", "lexicon", "fills"])
def test_t8_and_the_tilted_law_of_tokens(twist):
    """Every round's evidence, and the frequency of every string of the answer, by enumeration."""
    found = tokens(TriTSMC(twist=twist, rounds=2, schedule="every", ess_threshold=0.8), groups=250)
    assert round_scores(found, WORDS.tilted(letters, 4)[1]).abs().max() < 4
    assert frequency_scores(found, WORDS, letters, 4).abs().max() < 4.3
    assert found.training["moved"].max() > 0.05
    assert found.trace["deaths"].sum() > 0


def test_t8_longer_strings_of_more_letters():
    """Five letters at four positions: the exact tilted law against a token bias and a lexicon learned with a KL budget that binds."""
    gen = torch.Generator().manual_seed(2)
    move = torch.rand(5, 5, generator=gen, dtype=torch.float64).add(0.1)
    move = move / move.sum(1, keepdim=True)
    model = MarkovTokens(move[0].tolist(), move.tolist(), length=4)
    law_of_chain = model.law(5)
    assert law_of_chain.sum().item() == pytest.approx(1, abs=1e-12)
    assert (law_of_chain - model.joint).abs().max() > 1e-3, "several letters per step: not the data's law"

    def reward(texts):
        return torch.tensor([1.2 * t.count("e") - 0.4 * t.count("a") + 0.5 * ("bc" in t) for t in texts])

    for twist in (TokenBias(most=5), Feature(phi=torch.tensor([-0.4, 0.0, 0.0, 0.0, 1.2]))):
        found = tokens(TriTSMC(twist=twist, rounds=2, nats=0.3), model=model, reward=reward, groups=100, particles=64, steps=5)
        assert round_scores(found, model.tilted(reward, 5)[1]).abs().max() < 4
        assert frequency_scores(found, model, reward, 5, rare=0.01).abs().max() < 4.3
        assert bool((found.training["tau"][0] < 1).any())
        assert found.training["ess"][1].mean() > 1.1 * found.training["ess"][0].mean()


@dataclass(frozen=True)
class Unpaid(TriTSMC):
    """Trains without the density ratio in its weights."""

    def learned(self, problem, state):
        return super().learned(problem, state.but(log_w=torch.zeros_like(state.log_w)))


@dataclass(frozen=True)
class UnpaidStart(TriTSMC):
    """Moves x_T and does not weigh for it."""

    def open(self, problem, state):
        fresh = super().open(problem, state)
        return fresh.but(log_w=torch.zeros_like(fresh.log_w))


@dataclass(frozen=True)
class Again(TriTSMC):
    """Draws the answer with the random numbers that the parameters were fitted to."""

    def inner(self, problem, now):
        return replace(super().inner(problem, now), round=0)


def test_t8_mistakes_are_found():
    wrong = run(Unpaid(), groups=1000, particles=48)
    assert round_scores(wrong, law().z)[1:].abs().min() > 6
    assert round_scores(wrong, law().z)[0].abs() < 4
    wrong = run(UnpaidStart(twist="shift", eta=0.5), groups=1000, particles=48)
    assert z_scores(wrong, law(eta=0.5)).abs().max() > 6
    wrong = run(Again(twist="shift", rounds=1), groups=2000, particles=16)
    assert max(z_scores(wrong, law()).abs().max(), round_scores(wrong, law().z).abs().max()) > 6
    with_tokens = tokens(Unpaid(twist=Feature(phi=LEXICON), rounds=2), groups=200)
    assert round_scores(with_tokens, WORDS.tilted(letters, 4)[1])[1].abs() > 6


def test_t8_fresh_noise_for_the_reward():
    """A stochastic reward draws anew in every round, for every score on the way and at the end."""
    seen = []

    def noisy(x, noise):
        seen.append(noise.clone())
        return REWARD(x) + 0.3 * noise

    run(TriTSMC(train=0.75), groups=2, particles=32, reward=noisy)
    assert [len(v) for v in seen] == [2 * 8] * (3 + 4 + 1)
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert not bool(torch.isin(one, other).any())

    def score(texts, noise):
        seen.append(noise.clone())
        return letters(texts) + 0.3 * noise

    seen.clear()
    tokens(TriTSMC(twist=Feature(), rounds=2, schedule=()), reward=score, groups=1, particles=12)
    together = torch.cat(seen)
    assert len(together.unique()) == len(together)


def test_t8_a_noisy_reward_is_still_unbiased():
    """exp(λ r) is averaged over its noise: Z is that of the reward's own soft mean."""
    found = run(TriTSMC(), groups=1000, particles=48, reward=viot.rewards.Noisy(REWARD, 0.5))
    z = law().z * math.exp(0.5**2 / 2)
    assert round_scores(found, z).abs().max() < 4
    answer = found.log_z.exp()
    assert abs(answer.mean() - z) < 4 * answer.std() / len(answer) ** 0.5


# -- T9, T10: few particles, and nothing to learn ---------------------------------------------------------------------------------------


def test_t9_many_parameters_and_few_particles():
    """42 parameters, 16 particles: without cap and ridge the variance explodes, with the defaults it does not grow by half."""
    plane = GaussianMixture([[0.3, 0.3]], 0.6)
    task = {"particles": 64, "groups": 150, "steps": 20, "progress": False}
    free = TriTSMC(twist=Shift(ridge=0.0), cap=1e9, nats=1e9, train=0.75, schedule=())

    def variance(reward, method):
        with quiet():
            return viot.sample(plane, reward, method, **task).training["variance"].median(1).values

    for reward in (Quadratic([1.5, 1.5], 2.0), lambda x: 1.5 * x.sum(-1)):
        loose = variance(reward, free)
        kept = variance(reward, replace(free, twist=Shift(), cap=None, nats=1.0))
        assert loose[2] > 1.3 * loose[1] > 1.69 * loose[0]
        assert loose[2] > 2.5 * loose[0]
        assert bool((kept[1:] < 1.5 * kept[0]).all())
        # One slope for the whole chain learns where free shifts cannot.
        slope = variance(reward, replace(free, twist=Slope(), cap=None, nats=1.0))
        assert slope[2] < 0.5 * slope[0]


@pytest.mark.parametrize(
    "twist", [Slope(), Slope(buckets=4), VJP(), Shift(), Affine(), TokenBias(most=3), Feature(phi=LEXICON)], ids=lambda t: t.name
)
def test_t10_even_weights_teach_nothing(twist):
    """At λ = 0 the first round's weights are even: θ is 0 on average over groups."""
    model, reward, steps = (WORDS, letters, 4) if twist.tokens else (PLANE, slanted, STEPS)
    groups = 100 if twist.tokens else 300
    ready = viot.prepare(model, reward, TriTSMC(twist=twist, rounds=1, schedule=()), particles=80, groups=groups, steps=steps, lam=0.0)
    *_, last = ready.states()
    assert bool((last.group["rounds.variance"] < 1e-20).all())
    theta = last.group[THETA]
    if twist.name == "affine":
        # The likeliest variance of a sample is too small, by 1/N per coefficient.
        assert theta.view(groups, -1, 8)[..., 6:].mean().abs() < 0.15
        theta = theta.view(groups, -1, 8)[..., :6].flatten(1)
    moves = theta.std(0) > 0
    assert bool(moves.any())
    scores = theta[:, moves].mean(0) / (theta[:, moves].std(0) / groups**0.5)
    assert scores.abs().max() < 4
    assert bool((theta[:, ~moves] == 0).all())


# -- what falls -------------------------------------------------------------------------------------------------------------------------


def test_chi_square_falls_over_the_rounds():
    """log(1 + χ²) = −log ESS share, averaged over groups: on the chain, and on tokens with both families."""
    strong = run(TriTSMC(rounds=4, train=0.8), groups=100, particles=160, lam=3.0)
    bias = tokens(TriTSMC(rounds=2, train=0.8), groups=25, particles=160, lam=2.0)
    lexicon = tokens(TriTSMC(twist=Feature(phi=LEXICON), train=0.8), groups=25, particles=120, lam=2.0)
    fills = tokens(TriTSMC(twist=Feature(), rounds=2, train=0.8), groups=25, particles=80, lam=2.0)
    for found, share in ((strong, 0.6), (bias, 0.8), (lexicon, 0.9), (fills, 0.6)):
        chi = -found.training["ess"].log().mean(1)
        assert bool((chi[1:3] < chi[:2])[0]), chi
        assert chi[-1] < share * chi[0], chi


# -- each group by itself ---------------------------------------------------------------------------------------------------------------

EVERY = {
    "slope": Slope(),
    "slope, buckets": Slope(buckets=3),
    "vjp": VJP(),
    "direction": Direction(),
    "shift": Shift(),
    "affine": Affine(),
    "neural": Neural(hidden=4, epochs=10),
    "tokens": TokenBias(),
    "feature": Feature(),
    "lexicon": Feature(phi=LEXICON),
}


def world(twist, **more):
    """A small run's arguments for a family."""
    model, reward, steps = (WORDS, letters, 3) if twist.tokens else (Line(), lambda x: -((x - 1) ** 2).sum(-1), 4)
    return {"model": model, "reward": reward, "particles": 20, "steps": steps, "lam": 2.0, "seed": 4, "progress": False, **more}


def of_group(population, g):
    return [
        population.rewards[g],
        population.log_weights[g],
        population.x0[g],
        population.log_z[g],
        *(v[:, g] for v in population.training.values()),
    ]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("reuse", [False, True])
def test_each_group_learns_by_itself(name, reuse):
    twist = EVERY[name]
    method = TriTSMC(twist=twist, rounds=2, reuse=reuse)
    with quiet():
        together = viot.sample(method=method, groups=[0, 1, 2, 5], **world(twist))
        for at, group in ((1, 1), (3, 5)):
            alone = viot.sample(method=method, groups=[group], **world(twist))
            for one, other in zip(of_group(alone, 0), of_group(together, at), strict=True):
                assert torch.equal(one, other)
        assert not torch.equal(together.training["moved"][:, 0], together.training["moved"][:, 1])
        sliced = viot.sample(method=method, groups=[0, 1, 2, 5], batch_size=7, **world(twist))
    assert differing(sliced, together) == []
    assert all(torch.equal(v, together.training[k]) for k, v in sliced.training.items())


@pytest.mark.parametrize("name", ["slope", "vjp", "affine", "neural", "tokens", "feature"])
@pytest.mark.parametrize("reuse", [False, True])
def test_resumed_from_any_state(name, reuse, tmp_path):
    """Middle of a round, between rounds, in the final stage: the state on disk determines the rest."""
    twist = EVERY[name]
    method = TriTSMC(twist=twist, rounds=2, reuse=reuse, schedule="every", ess_threshold=0.9)
    task = {k: v for k, v in world(twist, groups=2).items() if k != "progress"}
    with quiet():
        whole, seen = viot.prepare(method=method, **task), []
        for state in whole.states():
            seen.append(state)
            if not state.done:
                state.save(tmp_path / f"{len(seen)}.safetensors")
        answer = whole.population(seen[-1])
        assert len(seen) == 3 * task["steps"] + 1
        progress = [whole.progress(s) for s in seen]
        assert progress == sorted(progress)
        for i in range(1, len(seen)):
            again = viot.prepare(method=method, **task)
            *_, last = again.states(State.load(tmp_path / f"{i}.safetensors")[0])
            found = again.population(last)
            assert differing(found, answer) == []
            assert all(torch.equal(v, answer.training[k]) for k, v in found.training.items())


# -- the budget -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("more", [{}, {"rounds": 1, "train": 0.3}, {"rounds": 5, "train": 0.0}, {"value": "rollout"}, {"rounds": 0}])
def test_what_is_planned_is_what_is_spent(reuse, more):
    method = TriTSMC(reuse=reuse, **more)
    task = {"particles": 23, "groups": 3, "steps": STEPS}
    ready = viot.prepare(MODEL, REWARD, method, **task)
    found = viot.sample(MODEL, REWARD, method, progress=False, **task)
    assert cost.planned(ready) == cost.Rows(found.nfe, found.decode_rows, found.reward_rows, found.grad_rows)
    assert found.nfe <= 3 * 23 * STEPS
    each, last = method.shares(ready.problem.K)
    assert each >= 2 * bool(method.rounds) - (method.rounds == 0) * 2
    assert method.rounds * each + last == ready.problem.K
    assert found.shape == (3, ready.problem.K if reuse else last)
    if "value" not in more or reuse:
        assert found.nfe == 3 * 23 * STEPS
        assert ready.problem.K == 23 if not more.get("value") else ready.problem.K <= 23
    assert found.training["ess"].shape == (method.rounds, 3)


def test_too_few_particles_are_refused():
    for rounds, least in ((1, 3), (3, 7), (5, 11)):
        with pytest.raises(ValueError, match=rf"particles ≥ {least} or budget ≥ {least * 4}"):
            viot.sample(MODEL, REWARD, TriTSMC(rounds=rounds), particles=least - 1, steps=4, progress=False)
        with quiet():
            viot.sample(MODEL, REWARD, TriTSMC(rounds=rounds), particles=least, steps=4, progress=False)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"eta": 0.0}, "eta > 0"),
        ({"rounds": -1}, "rounds"),
        ({"train": 1.0}, "train"),
        ({"nats": 0.0}, "nats"),
        ({"cap": -1.0}, "cap"),
        ({"solver": "newton"}, "solver"),
        ({"ess_threshold": 2.0}, "ess_threshold"),
    ],
)
def test_settings_that_are_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        TriTSMC(**wrong)


# -- the distance a round may go --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_no_round_goes_beyond_its_cap(name):
    twist = EVERY[name]
    with quiet():
        for method, most in ((TriTSMC(twist=twist, rounds=2, cap=0.02), 0.02), (TriTSMC(twist=twist, rounds=2, nats=0.03), 0.03)):
            found = viot.sample(method=method, groups=6, **world(twist))
            assert bool((found.training["moved"] <= most * (1 + 1e-6)).all())
            assert found.training["step"].min() < 1
            assert found.training["moved"].max() > 0.9 * most
            assert bool((found.training["kl"][found.training["tau"] == 1] <= method.nats).all())
            assert bool((found.training["kl"][found.training["tau"] < 1] > method.nats).all())


def test_a_group_that_learned_nothing_stays():
    """A hard constraint that no path of a group meets: θ is what it was, the others go on, and nothing is NaN."""

    def rare(x, group):
        return torch.where((group == 1) & (x[:, 0] < 30), -torch.inf, REWARD(x))

    with quiet():
        found = viot.sample(MODEL, rare, TriTSMC(), particles=24, groups=3, steps=STEPS, progress=False)
        clean = viot.sample(MODEL, REWARD, TriTSMC(), particles=24, groups=3, steps=STEPS, progress=False)
    assert found.dead_groups == [1]
    assert bool((found.training["moved"][:, 1] == 0).all())
    for g in (0, 2):
        assert torch.equal(found.log_weights[g], clean.log_weights[g])


def test_hard_constraints():
    """A reward of −inf for part of the samples: cut off exactly, in every round."""

    def allowed(x):
        return torch.where(x[:, 0] < 0.6, 0.5 * x[:, 0], -torch.inf)

    _, log_z = MODEL.chain_density(STEPS, 1.0, points=2401).tilt(lambda x: allowed(x[:, None]))
    found = run(TriTSMC(twist="shift"), reward=allowed, groups=500, particles=48)
    assert round_scores(found, math.exp(log_z)).abs().max() < 4
    answer = found.log_z.exp().nan_to_num(nan=0.0)
    assert abs(answer.mean() - math.exp(log_z)) < 4 * answer.std() / len(answer) ** 0.5


# -- every path kept --------------------------------------------------------------------------------------------------------------------


def test_reuse_returns_every_path_weighed_against_the_mixture():
    """All K come back. Consistent: the bias of few particles is gone with many, and beside the answer alone the evidence is steadier."""
    few = run(TriTSMC(reuse=True), groups=1200, particles=12, lam=3.0)
    assert few.shape == (1200, 12)
    assert few.samples.shape == (1200, 12, 1)
    assert torch.allclose(few.rewards, REWARD(few.samples.flatten(0, 1)).view(1200, 12))
    many, alone = (run(TriTSMC(reuse=reuse), groups=40, particles=800, lam=3.0) for reuse in (True, False))
    z = law(lam=3.0).z
    bias = [abs(p.log_z.exp().mean().item() / z - 1) for p in (few, many)]
    error = [(p.log_z.exp().std() / z / len(p.log_z) ** 0.5).item() for p in (few, many)]
    assert bias[0] > 4 * error[0]
    assert bias[1] < bias[0] / 4
    assert bias[1] < 0.01 + 4 * error[1]
    assert many.log_z.exp().std() < alone.log_z.exp().std()
    x = many.mean(many.samples[..., 0])
    assert x.mean().item() == pytest.approx(law(lam=3.0).first, abs=0.01)


@pytest.mark.parametrize("twist", [Shift(), Slope(), Direction(), Affine(), Neural(hidden=4, epochs=10), VJP()], ids=lambda t: t.name)
def test_reuse_of_every_family(twist):
    """Also at η ½, where x_T's own density counts."""
    found = run(TriTSMC(twist=twist, reuse=True, eta=0.5), groups=8, particles=2000)
    truth = law(eta=0.5)
    z = found.log_z.exp().mean().item()
    assert z == pytest.approx(truth.z, rel=0.02)
    assert found.mean(found.samples[..., 0]).mean().item() == pytest.approx(truth.first, abs=0.02)


@pytest.mark.parametrize("twist", [TokenBias(), Feature(phi=LEXICON), Feature()], ids=["tokens", "lexicon", "fills"])
def test_reuse_of_tokens(twist):
    found = tokens(TriTSMC(twist=twist, rounds=2, reuse=True), groups=8, particles=600)
    exact, z = WORDS.tilted(letters, 4)
    assert found.log_z.exp().mean().item() == pytest.approx(z, rel=0.02)
    number = {s: i for i, s in enumerate(WORDS.strings())}
    which = torch.tensor([[number[s] for s in group] for group in found.samples])
    share = torch.zeros(8, 27, dtype=torch.float64).scatter_add_(1, which, found.weights).mean(0)
    assert (share - exact).abs().max() < 0.01


def test_reuse_on_a_grid_that_ends_with_noise():
    """The last step has none, wherever the grid ends: its density must not be counted."""

    class Unending(GaussianMixture):
        def grid(self, steps):
            t = torch.linspace(1, 0.2, steps + 1, dtype=torch.float64)
            alphas, sigmas = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
            alphas[0], sigmas[0] = 0.0, 1.0
            return viot.Grid(t[:-1], alphas, sigmas)

    model = Unending([[0.3]], 0.6)
    plain = run(Importance(), model=model, groups=8, particles=8000)
    for twist in ("shift", "direction", "vjp"):
        found = run(TriTSMC(twist=twist, reuse=True), model=model, groups=8, particles=2000)
        assert found.log_z.exp().mean().item() == pytest.approx(plain.log_z.exp().mean().item(), rel=0.02)


def test_reuse_without_rounds_changes_the_selection_alone():
    theta = torch.tensor([[0.9]])
    kept = run(TriTSMC(twist=Slope(theta=theta), rounds=0, reuse=True), groups=10)
    plain = run(TriTSMC(twist=Slope(theta=theta), rounds=0, schedule=()), groups=10)
    assert torch.allclose(kept.log_weights, plain.log_weights, atol=1e-6)
    assert torch.equal(kept.rewards, plain.rewards)
    assert len(kept.ancestors) == 0


# -- keeping it -------------------------------------------------------------------------------------------------------------------------


def test_the_rounds_are_kept_with_the_answer(tmp_path):
    found = run(TriTSMC(), groups=2, particles=24)
    assert set(found.training) == {"tau", "beta", "ess", "log_z", "variance", "kl", "step", "moved"}
    assert all(v.shape == (3, 2) for v in found.training.values())
    found.save(tmp_path)
    again = viot.Population.load(tmp_path)
    assert all(torch.equal(again.training[k], v) for k, v in found.training.items())


def test_silence():
    """An ordinary run warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        viot.sample(MODEL, REWARD, "tri-tsmc", particles=64, groups=2, steps=STEPS, progress=False)


def test_statistics_do_not_outlive_training():
    """The answer's population carries no statistics, unless it is to be pooled."""
    for reuse in (False, True):
        ready = viot.prepare(MODEL, REWARD, TriTSMC(reuse=reuse), particles=24, steps=4)
        for state in ready.states():
            training_now = int(state.group["round"][0]) < 3
            assert bool(Twist.held(state)) == ((training_now or reuse) and not (state.done and reuse))
