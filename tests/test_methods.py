"""The invariants of each method, the propositions of their papers by simulation, and what must equal what."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from exact import MODEL, REWARD, run

import viot
from viot import resample, weights
from viot.methods import FKD, FVD, VASR, BestOfN, Importance, VASRMax
from viot.weights import NEG_INF


def problem(groups=1, particles=8, steps=10, lam=1.0, seed=0, method="base"):
    return viot.prepare(MODEL, REWARD, method, particles=particles, groups=groups, steps=steps, lam=lam, seed=seed).problem


def after_selection(method, rewards, *, lam=1.0, steps=10, seed=0, step=5, log_w=None, keep_group=None):
    """The state after one selection from given rewards (G, K): all else is as at the start of a run."""
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    g, k = rewards.shape
    p = problem(g, k, steps, lam, seed)
    state = method.prepare(p, p.start()).but(rewards=rewards, step=step)
    state = state.but(log_w=state.log_w if log_w is None else log_w)
    if keep_group:
        state = state.with_group(**keep_group)
    return method.choose(p, state)


def parents(state):
    return state.history[-1].ancestors.long()


GEN = torch.Generator().manual_seed(0)
R = torch.randn(400, 16, generator=GEN, dtype=torch.float64)
ONE = FVD(schedule=(0.5,), cap=1.0)  # one scoring step, so its share of the strength is 1


# -- FVD ----------------------------------------------------------------------------------------------------------------------------------


def test_fvd_survivors_keep_their_slots_and_the_best_survives():
    state = after_selection(ONE, R, lam=3.0)
    a, reborn = parents(state), state.extra["reborn"]
    slots = torch.arange(16).expand_as(a)
    assert torch.equal(a == slots, ~reborn)
    assert reborn.any()
    # Donors are survivors, and every survivor has itself as a child.
    assert not reborn.gather(1, a).any()
    assert (resample.counts(a).gather(1, R.argmax(1, keepdim=True)) >= 1).all()
    assert (resample.counts(a).sum(1) == 16).all()


def test_fvd_equal_rewards_change_nothing():
    state = after_selection(ONE, torch.full((5, 16), -1.7), lam=3.0)
    assert torch.equal(parents(state), resample.identity(5, 16))
    assert (state.history[-1].stats["absorption"] == 0).all()
    assert torch.allclose(state.extra["path"], torch.tensor(3.0 * -1.7, dtype=torch.float64))


def test_fvd_only_differences_of_reward_count():
    one, other = after_selection(ONE, R, lam=2.0), after_selection(ONE, R + 123.0, lam=2.0)
    assert torch.equal(parents(one), parents(other))
    assert torch.allclose(one.extra["path"] + 2 * 123.0, other.extra["path"])


def test_fvd_the_dead_grow_with_the_strength():
    before = torch.zeros_like(R, dtype=torch.bool)
    for lam in (0.1, 0.5, 1.0, 2.0, 8.0):
        dead = after_selection(ONE, R, lam=lam).extra["reborn"]
        assert (before <= dead).all()
        before = dead
    assert before.sum() > 0.5 * before.numel()


def test_fvd_more_reward_more_offspring():
    r = torch.linspace(-2, 0, 8, dtype=torch.float64).expand(4000, 8)
    mean = resample.counts(parents(after_selection(ONE, r, lam=1.5))).double().mean(0)
    se = 0.02
    assert (mean.diff() > -4 * se).all()
    assert mean[-1] > mean[0] + 1


@pytest.mark.parametrize("policy", ["random", "temper", "spare_best"])
def test_fvd_cap_on_deaths(policy):
    method = replace(ONE, cap=0.25, cap_policy=policy)
    dead = after_selection(method, 5 * R, lam=2.0).extra["reborn"].sum(1)
    assert (dead <= 4).all()
    assert (dead == 4).any()
    free = after_selection(ONE, 5 * R, lam=2.0).extra["reborn"].sum(1)
    assert (free > 4).any(), "a cap that never binds is not tested"


def test_forbidden_guesses_score_below_all_others_and_stay_alive():
    r = torch.tensor([[-1.0, NEG_INF, -4.0], [NEG_INF, NEG_INF, NEG_INF]], dtype=torch.float64)
    assert weights.floored(r, 2.0).tolist() == [[-1.0, -5.5, -4.0], [0.0, 0.0, 0.0]]
    assert weights.floored(r, -2.0)[0].tolist() == [-1.0, 0.5, -4.0], "λ r is what must be low"
    assert weights.floored(r, 0.0)[0].tolist() == [-1.0, -4.0, -4.0]
    assert torch.equal(weights.floored(r[:1, ::2], 1.0), r[:1, ::2])


def test_fvd_paths_telescope():
    """L + log G_0 = λ r(x_0) along every lineage, whatever controller and cap did on the way."""
    method = FVD(alpha_star=0.15, cap=0.2, lam0=5.0)
    r = viot.prepare(MODEL, REWARD, method, particles=32, groups=3, steps=20, lam=0.7)
    *_, before, last = r.states()
    assert torch.allclose(last.log_w - before.log_w + before.extra["path"], 0.7 * last.rewards, atol=1e-12)


def test_fvd_clones_part_only_by_their_rebirth_noise():
    for eta, same in ((0.0, True), (1.0, False)):
        method = FVD(eta_base=0.0, eta_rebirth=eta, schedule=(0.5,))
        p = run(method, groups=20, particles=16, steps=10, lam=4.0)
        clones = p.roots[:, :, None] == p.roots[:, None, :]
        clones &= ~torch.eye(16, dtype=torch.bool)
        x = p.samples[..., 0]
        equal = x[:, :, None] == x[:, None, :]
        assert clones.any()
        assert bool(equal[clones].all()) is same
        assert same or not equal[clones].any()


def test_fvd_only_the_reborn_get_noise_and_only_once():
    """One selection at j = 5 of η_base = 0: a run without deaths is deterministic, one with them differs only in the reborn."""
    plain = run(Importance(eta=0.0), groups=1, particles=32, steps=10)
    steered = run(FVD(schedule=(0.5,)), groups=1, particles=32, steps=10, lam=2.0)
    survived = (steered.ancestors[0, 0].long() == torch.arange(32)) & ~after_noise(steered)
    assert torch.equal(plain.samples[0, survived], steered.samples[0, survived])
    assert 0 < survived.sum() < 32


def after_noise(population):
    """Which particles were reborn at the only selection: their slot is filled from another one."""
    return population.ancestors[0, 0].long() != torch.arange(population.shape[1])


def test_fvd_controller_moves_towards_its_target():
    for controller in ("multiplicative", "additive"):
        method = replace(ONE, alpha_star=0.15, controller=controller, lam_bounds=(0.01, 50.0))
        for lam0, direction in ((0.05, 1), (20.0, -1)):
            state = after_selection(method, R, keep_group={"lam": torch.full((400,), lam0, dtype=torch.float64)})
            absorbed, lam = state.history[-1].stats["absorption"], state.group["lam"]
            moved = (lam - lam0).sign()
            assert torch.equal(moved, (0.15 - absorbed).sign())
            assert (moved == direction).double().mean() > 0.95
            assert ((lam >= 0.01) & (lam <= 50.0)).all()
    constant = after_selection(ONE, R, lam=2.0)
    assert (constant.group["lam"] == 2.0).all()


def test_fvd_bisection_meets_its_target_at_every_selection():
    p = run(FVD(alpha_star=0.2, controller="bisection"), groups=8, particles=256, steps=20)
    assert torch.allclose(p.trace["absorption"], torch.tensor(0.2, dtype=torch.float64), atol=1e-6)
    assert p.trace["lam"].std() > 0


def test_fvd_calibrate_finds_the_strength():
    method = FVD(alpha_star=0.15).calibrate(MODEL, REWARD, runs=8, particles=256, steps=20, groups=4)
    assert method.alpha_star is None
    p = run(method, groups=4, particles=256, steps=20)
    assert p.trace["absorption"].mean().item() == pytest.approx(0.15, abs=0.03)
    with pytest.raises(ValueError, match="alpha_star"):
        FVD().calibrate(MODEL, REWARD)


def test_fvd_proposition_1_multinomial_loses_a_third_without_any_signal():
    k = 256
    r = torch.zeros(200, k)
    lost = 1 - after_selection(FKD(resampling="multinomial", ess_threshold=None), r).history[-1].stats["distinct_parents"].mean() / k
    assert lost.item() == pytest.approx((1 - 1 / k) ** k, abs=0.005)
    assert abs(lost.item() - math.exp(-1)) < 0.01
    assert (after_selection(ONE, r).history[-1].stats["distinct_parents"] == k).all()


def test_fvd_proposition_2_offspring_variance_stays_bounded_where_multinomial_grows():
    """One dominant particle: its multinomial variance is of order K, and a death cap c bounds FVD's by c/(1−c) + 1/(4(1−c)²)."""
    cap, seen = 0.5, {}
    bound = cap / (1 - cap) + 1 / (4 * (1 - cap) ** 2)
    for k in (16, 64, 256):
        r = torch.full((3000, k), -math.log(k), dtype=torch.float64)
        r[:, 0] = 0.0  # half of all mass, at every K
        n = {
            name: resample.counts(parents(after_selection(method, r)))[:, 0].double().var().item()
            for name, method in {"fvd": replace(ONE, cap=cap), "multinomial": FKD(ess_threshold=None)}.items()
        }
        assert n["fvd"] <= bound * 1.1
        seen[k] = n["multinomial"]
    assert seen[256] > 10 * bound
    assert seen[256] > 8 * seen[16]


# -- VASR ---------------------------------------------------------------------------------------------------------------------------------


def weighted(k=16, groups=400):
    return 0.7 * torch.randn(groups, k, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def test_vasr_counts_are_within_one_of_their_expectation():
    log_w = weighted()
    state = after_selection(VASR(), R, log_w=log_w)
    expected = 16 * weights.normalize(log_w + R).exp()
    assert ((resample.counts(parents(state)) - expected).abs() < 1).all()
    assert state.history[-1].stats["offspring_variance"].max() <= 0.25 + 1  # (N − K m)² < 1 for each


def test_vasr_proposition_5_offspring_keep_the_weighted_measure():
    """E Σ_children w f = Σ w f for any f, and the total weight itself is random."""
    repeats, k = 20_000, 6
    r, log_w = R[:1, :k].expand(repeats, k), weighted()[:1, :k].expand(repeats, k)
    f = torch.randn(k, generator=GEN, dtype=torch.float64)
    for method in (VASR(), VASR(order="none"), VASR(temperature=0.4), VASR(resampling="multinomial"), VASR(standardize=True)):
        state = after_selection(method, r, log_w=log_w)
        kept = (state.log_w.exp() * f[parents(state)]).mean(1)
        exact = (log_w[0].exp() * f).mean()
        assert abs(kept.mean() - exact) < 4 * kept.std() / repeats**0.5
        total = state.log_w.exp().mean(1)
        assert abs(total.mean() - log_w[0].exp().mean()) < 4 * total.std() / repeats**0.5
        assert total.std() > 1e-3


def test_vasr_propositions_1_and_7_variance_splits_as_stated():
    """Var of the estimate = V_cont + V_res, with V_res from the covariances of the counts; total by simulation."""
    k, repeats = 6, 60_000
    gen = torch.Generator().manual_seed(3)
    w = torch.rand(k, generator=gen, dtype=torch.float64)
    w = w / w.sum()
    m = torch.rand(k, generator=gen, dtype=torch.float64) + 0.2
    m = m / m.sum()
    mu, s = torch.randn(2, k, generator=gen, dtype=torch.float64).abs()
    scheme = resample.get("systematic")
    a = scheme(m.expand(repeats, k), torch.rand(repeats, 1, generator=gen, dtype=torch.float64))
    n = resample.counts(a).double()
    terminal = mu[a] + s[a] * torch.randn(repeats, k, generator=gen, dtype=torch.float64)
    estimate = ((w / (k * m))[a] * terminal).sum(1)
    v_cont = (w**2 * s**2 / m).sum() / k
    c = w * mu / (k * m)
    v_res = c @ n.T.cov() @ c
    total = (v_cont + v_res).item()
    assert estimate.var().item() == pytest.approx(total, rel=5 * (2 / repeats) ** 0.5 * 2)
    assert v_res < v_cont * 10
    assert estimate.var().item() != pytest.approx(v_cont.item(), rel=0.05), "a simulation that cannot see V_res tests nothing"


def test_vasr_proposition_6_masses_are_the_best():
    """m ∝ w s minimises Σ w² s² / m at (Σ w s)²; any other point of the simplex is larger. With s constant, m = w."""
    log_w, p = weighted(8, 1), problem(1, 8)
    state = VASR().prepare(p, p.start()).but(rewards=R[:1, :8], log_w=log_w)
    m = VASR().log_masses(p, state).exp()
    w, s = weights.normalize(log_w).exp(), R[:1, :8].exp()
    best = (w**2 * s**2 / m).sum()
    assert best == pytest.approx((w * s).sum() ** 2)
    for i in range(50):
        other = torch.rand(1, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        assert (w**2 * s**2 / (other / other.sum())).sum() > best
    level = VASR().log_masses(p, state.but(rewards=torch.full((1, 8), 0.3, dtype=torch.float64))).exp()
    assert torch.allclose(level, w)
    after = VASR().choose(p, state)
    assert after.history[-1].stats["v_cont"] == pytest.approx(1.0), "the record calls the optimal masses optimal"
    flat = replace(VASR(), temperature=0.0).choose(p, state)
    assert (flat.history[-1].stats["v_cont"] > 1.01).all()


def test_vasr_without_signal_or_strength_everybody_keeps_one_child():
    for method, rewards in ((VASR(temperature=0.0), R), (VASR(), torch.full_like(R, 2.0))):
        state = after_selection(method, rewards)
        assert torch.equal(parents(state), resample.identity(400, 16))
        assert torch.allclose(state.log_w, torch.zeros_like(state.log_w))


def test_vasr_child_weights_cancel_their_parents_score():
    state = after_selection(VASR(), R)
    product = state.log_w + R.gather(1, parents(state))
    assert torch.allclose(product, product[:, :1].expand_as(product))


def test_vasr_only_differences_of_reward_count():
    for method in (VASR(), VASR(standardize=True)):
        one, other = after_selection(method, R), after_selection(method, R + 50.0)
        assert torch.equal(parents(one), parents(other))
    scaled = after_selection(VASR(standardize=True), 1000 * R)
    assert torch.equal(parents(scaled), parents(after_selection(VASR(standardize=True), R)))


def test_vasr_order_changes_sums_but_no_single_particle():
    """Sorting leaves the marginals of the counts alone and lowers the variance of smooth sums (mu monotone in r)."""
    draws, repeats, k = 150, 400, 8
    r = torch.randn(draws, k, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    m, c = r.softmax(1), (0.5 * r).exp()
    frac, spread = (k * m).frac(), {}
    for order in ("score", "none", "ratio"):
        n = resample.counts(parents(after_selection(VASR(order=order), r.repeat_interleave(repeats, 0)))).double().view(draws, repeats, k)
        assert ((n.mean(1) - k * m).abs() < 5 * (0.5 / repeats**0.5)).all()
        assert ((n.var(1) - frac * (1 - frac)).abs() < 0.09).all()
        spread[order] = (n @ c[..., None] / k).var(1).mean().item()
    assert spread["score"] < 0.7 * spread["none"]
    assert spread["ratio"] == pytest.approx(spread["score"], rel=0.1), "reversing an order leaves the joint law of the counts"


def test_vasr_max_one_parent_uniform_weights():
    state = after_selection(VASRMax(), R)
    assert (state.history[-1].stats["distinct_parents"] == 1).all()
    assert torch.equal(parents(state)[:, 0], R.argmax(1))
    assert (state.log_w == 0).all()
    hot = after_selection(VASR(temperature=1e4), R)
    assert torch.equal(parents(hot), parents(state)), "VASR-Max is VASR as the temperature grows"
    tie = after_selection(VASRMax(), torch.zeros(3, 16))
    assert (parents(tie) == 0).all()


def test_vasr_max_returns_distinct_candidates_best_first():
    p = run(VASRMax(), groups=3, particles=16)
    assert not p.exact
    assert p.log_z.isnan().all()
    assert (p.rewards.diff(dim=1) <= 0).all()
    assert torch.allclose(p.log_weights, torch.tensor(-math.log(p.shape[1]), dtype=torch.float64))
    frozen = run(VASRMax(eta=0.0, schedule=(0.5,)), groups=3, particles=16)
    assert frozen.shape == (3, 1), "without noise all descendants of one particle are the same sample"


# -- FKD ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("potential", ["diff", "max", "sum", "rt"])
def test_fkd_potentials_multiply_to_the_tilt(potential):
    r = viot.prepare(MODEL, REWARD, FKD(potential=potential), particles=16, groups=4, steps=20, lam=0.7)
    *_, before, last = r.states()
    log_g0 = last.log_w - before.log_w
    assert torch.allclose(before.extra["path"] + log_g0, 0.7 * last.rewards, atol=1e-12)


def test_fkd_without_strength_never_selects():
    p = run(FKD(), groups=10, particles=16, lam=0.0)
    assert p.trace["deaths"].sum() == 0
    assert torch.allclose(p.ess, torch.tensor(16.0, dtype=torch.float64))


def test_fkd_carries_its_weights_when_it_does_not_resample():
    never = run(FKD(ess_threshold=0.0), groups=10, particles=16)
    plain = run(Importance(), groups=10, particles=16)
    assert torch.allclose(never.log_weights, plain.log_weights)
    assert torch.equal(never.samples, plain.samples)


def test_fkd_potentials_by_hand():
    rewards = [torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -0.5]])]
    expected = {
        "diff": [[-1.0, -2.0], [-2.0, 1.5]],
        "max": [[-1.0, -2.0], [-1.0, -0.5]],
        "sum": [[-1.0, -2.0], [-4.0, -2.5]],
        "rt": [[-1.0, -2.0], [-3.0, -0.5]],
    }
    p = problem(1, 2)
    for potential, steps in expected.items():
        method = FKD(potential=potential)
        running = method.prepare(p, p.start()).extra["running"]
        for r, log_g in zip(rewards, steps, strict=True):
            found, running = method.log_potential(1.0, running, r.double())
            assert torch.allclose(found, torch.tensor([log_g], dtype=torch.float64))


# -- what equals what ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FKDBefore(FKD):
    """FK steering that resamples the state it scored, like VASR."""

    resample: ClassVar[str] = "before_step"


def test_e1_vasr_without_order_is_fk_difference_with_systematic_resampling():
    steps = {"schedule": (0.1, 0.3, 0.5, 0.8), "resampling": "systematic", "ess_threshold": None}
    fkd = run(FKDBefore(**steps), groups=200, steps=20)
    vasr = run(VASR(**steps, order="none"), groups=200, steps=20)
    assert torch.equal(fkd.ancestors, vasr.ancestors)
    assert vasr.trace["deaths"].sum() > 0
    assert torch.equal(fkd.samples, vasr.samples)
    assert torch.allclose(fkd.log_z, vasr.log_z)
    assert torch.allclose(fkd.log_weights, vasr.log_weights)


def test_e2_no_strength_is_independent_sampling():
    assert torch.equal(run(VASR(), groups=5, lam=0.0).samples, run("base", groups=5, lam=0.0).samples)


def test_e3_vasr_max_is_the_limit_of_vasr():
    hot = run(VASR(temperature=1e6), groups=10, particles=8)
    most = run(VASRMax(), groups=10, particles=8)
    assert torch.equal(hot.ancestors, most.ancestors)
    assert torch.equal(hot.samples.sort(1).values, most.samples.sort(1).values)


def test_e5_best_of_everything_is_the_best_base_sample():
    best, base = run(BestOfN(n=None), groups=5), run("base", groups=5)
    assert torch.equal(best.samples[:, 0], base.best(1).samples[:, 0])


def test_e6_fkd_that_never_selects_is_importance_weighting():
    assert torch.allclose(run(FKD(schedule=()), groups=5).log_weights, run(Importance(), groups=5).log_weights)
    base = run("base", groups=5)
    assert torch.allclose(run(Importance(), groups=5).log_weights, base.rewards - base.rewards.logsumexp(1, keepdim=True))


# -- the loop -----------------------------------------------------------------------------------------------------------------------------


def test_schedules_scale_with_the_steps():
    assert VASR().scoring(50) == list(range(5, 50, 5))
    assert FKD().scoring(50) == [10, 20, 30, 40]
    assert VASR().scoring(20) == list(range(2, 20, 2))
    assert VASR(schedule="every").scoring(6) == [0, 1, 2, 3, 4]
    assert VASR(schedule=4).scoring(20) == [4, 8, 12, 16]
    assert VASR(schedule=(0.0, 0.98)).scoring(10) == [0], "the last step is never scored: nothing could part the copies"
    assert VASR().scoring(1) == []


def test_rewards_are_asked_only_where_they_are_used():
    calls = []

    def reward(x):
        calls.append(len(x))
        return -x.flatten()

    p = viot.sample(MODEL, reward, VASR(), particles=8, steps=20, progress=False)
    assert calls == [8] * (9 + 1)
    assert p.reward_rows == p.decode_rows == 80
    assert p.nfe == 160


def test_rollouts_stay_inside_the_budget():
    from viot.value import Rollout

    method = VASR(value=Rollout(2, 3))
    p = viot.sample(MODEL, REWARD, method, particles=32, groups=3, steps=20, progress=False)
    assert p.nfe <= 3 * 32 * 20
    assert p.shape[1] == 32 * 20 // method.cost(20) < 32
    assert p.nfe == 3 * p.shape[1] * method.cost(20), "the plan is the count"


def test_soft_values_of_rollouts_approach_the_soft_value():
    """On the linear-Gaussian chain (1/λ) log E exp(λ r) is known: the chain's own law from x_t on, tilted."""
    from viot.value import Rollout

    p = problem(1, 4, steps=4)
    method = Importance()
    state = method.look(p, method.prepare(p, p.start()).but(step=0))
    many = Rollout(n=40_000, steps=4)(p, state).rewards[0]
    for i in range(4):
        x, alone = state.x[:, i : i + 1].expand(1, 40_000, 1), problem(1, 40_000, steps=4, seed=9)
        path = alone.start().but(x=x)
        for j in range(4):
            path = method.propose(alone, method.look(alone, path.but(step=j)))
        r = REWARD(path.x[0])
        assert many[i].item() == pytest.approx(weights.log_mean_exp(r).item(), abs=0.03)
