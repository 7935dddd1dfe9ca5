"""DPS, TDS and DAS: proposals along the reward's gradient, weighed exactly however good or bad they are."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from exact import MODEL, REWARD, is_exact, law, run, z_scores
from helpers import Differentiable, Line, Tokens, quiet
from test_exact import MIXTURE, PULL, mixture_law
from test_methods import FKDBefore

import viot
from viot import weights
from viot.methods import DAS, DPS, TDS
from viot.methods.guided import Guided
from viot.models.gaussian import GaussianMixture
from viot.rewards import Inpainting, Quadratic
from viot.value import Rollout

# -- exactness ----------------------------------------------------------------------------------------------------------------------------

EXACT = {
    "tds": TDS(),
    "tds, x0": TDS(mean="x0"),
    "tds, every step": TDS(schedule="every"),
    "tds, never selects": TDS(schedule=()),
    "tds, adaptive": TDS(ess_threshold=0.98),
    "tds, weak": TDS(guidance=0.2, mean="score"),
    "tds, none": TDS(guidance=0.0),
    "tds, wrong": TDS(guidance=-0.5, mean="score"),
    "tds, unclipped": TDS(mean="score", clip=None),
    "tds, tightly clipped": TDS(clip=0.2, mean="x0"),
    "tds, eta .6": TDS(eta=0.6, mean="score"),
    "tds, rollout": TDS(value=Rollout(1, 2), mean="score"),
    "das": DAS(ess_threshold=0.95),
    "das, every step": DAS(schedule="every", ess_threshold=0.95),
    "das, polynomial": DAS(tempering="polynomial", power=1.5, schedule="every", ess_threshold=0.95),
    "das, adaptive": DAS(tempering="adaptive", schedule="every", ess_threshold=0.9),
    "das, x0": DAS(mean="x0", ess_threshold=0.95),
    "das, wrong": DAS(guidance=-0.5, ess_threshold=None),
    "das, multinomial": DAS(resampling="multinomial", ess_threshold=None),
}


@pytest.mark.parametrize("name", EXACT)
def test_unbiased_at_sixteen_particles(name):
    """Ẑ, mean and second moment of the tilted chain, at K = 16: the density ratio pays for any proposal."""
    method = EXACT[name]
    assert method.exact
    population = run(method, groups=1500)
    assert population.nfe <= 1500 * 16 * 8
    assert population.grad_rows == (0 if method.guidance == 0 else population.rewards.numel() * 7)
    assert z_scores(population, law(eta=method.eta)).abs().max() < 4.0
    if name not in ("tds, never selects",):
        assert population.trace["deaths"].sum() > 0, "a test of selection must select"


@pytest.mark.parametrize("method", [TDS(), TDS(mean="x0"), DAS(), DAS(tempering="adaptive", schedule="every")], ids=lambda m: m.name)
def test_strengths_other_than_one(method):
    for lam in (0.3, 3.0, -0.2):
        assert is_exact(run(method, lam=lam, groups=1000), law(lam=lam))


@pytest.mark.parametrize(
    "method",
    [
        TDS(mean="score"),
        TDS(guidance=0.3, mean="x0"),
        TDS(guidance=-0.3, mean="score"),
        DAS(),
        DAS(tempering="adaptive", schedule="every"),
        DAS(eta=0.7),
    ],
    ids=repr,
)
def test_mixture(method):
    assert is_exact(run(method, model=MIXTURE, reward=PULL, steps=10, groups=1000), mixture_law(method.eta))


# -- negative controls --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForgetsTheRatio(TDS):
    """A guided proposal that is not paid for."""

    def propose(self, problem, state):
        return super().propose(problem, state).but(log_w=state.log_w)


@dataclass(frozen=True)
class LeavesGuidanceAndTwist(DAS):
    """The bug of published code: states and predictions are gathered, the guidance and the twist of before are not."""

    def select(self, problem, state):
        kept = {name: state.extra[name] for name in ("gradient", "path")}
        return super().select(problem, state).with_extra(**kept)


@dataclass(frozen=True)
class LeavesGuidance(DAS):
    """Half of that bug."""

    def select(self, problem, state):
        return super().select(problem, state).with_extra(gradient=state.extra["gradient"])


@pytest.mark.parametrize(
    "wrong",
    [
        ForgetsTheRatio(mean="score"),
        ForgetsTheRatio(guidance=-0.5, mean="score"),
        LeavesGuidanceAndTwist(tempering="none", resampling="systematic", ess_threshold=None, schedule="every"),
    ],
    ids=["no density ratio", "no density ratio, wrong way", "guidance and twist not gathered"],
)
def test_mistakes_are_found(wrong):
    assert z_scores(run(wrong), law())[1:].abs().max() > 6.0


def test_another_ones_guidance_is_still_a_proposal():
    """Guidance that is not gathered moves an offspring along another particle's gradient, and the ratio pays for that too: the answer stays
    exact and becomes worse. What breaks the law is a *twist* that is not gathered.
    """
    lost = {"tempering": "none", "ess_threshold": None, "schedule": "every", "clip": None}
    right, wrong = run(DAS(**lost), lam=3.0), run(LeavesGuidance(**lost), lam=3.0)
    assert is_exact(wrong, law(lam=3.0))
    error = wrong.log_z.std() * (0.5 / len(wrong.log_z)) ** 0.5
    assert wrong.log_z.std() > right.log_z.std() + 4 * error


# -- equivalences -------------------------------------------------------------------------------------------------------------------------


def same(a, b):
    return torch.equal(a.samples, b.samples) and torch.equal(a.ancestors, b.ancestors) and torch.allclose(a.log_weights, b.log_weights)


def test_e7_tds_without_guidance_is_fk_difference():
    shared = {"resampling": "systematic", "ess_threshold": 0.9, "schedule": "every"}
    tds, fkd = run(TDS(guidance=0.0, **shared), groups=50), run(FKDBefore(**shared), groups=50)
    assert tds.trace["deaths"].sum() > 0
    assert same(tds, fkd)


def test_e8_das_without_tempering_is_tds():
    shared = {"resampling": "ssp", "ess_threshold": 0.9, "schedule": "every", "mean": "score"}
    das, tds = run(DAS(tempering="none", **shared), groups=50), run(TDS(**shared), groups=50)
    assert das.trace["deaths"].sum() > 0
    assert same(das, tds)
    assert not same(run(DAS(**shared), groups=50), tds)


def test_e8_das_without_guidance_is_fk_difference_of_the_tempered_reward():
    @dataclass(frozen=True)
    class Tempered(FKDBefore):
        def log_potential(self, lam, running, rewards):
            now = rewards * self.gammas.pop(0)
            return lam * (now - running), now

    shared = {"resampling": "ssp", "ess_threshold": 0.9, "schedule": "every"}
    das = DAS(guidance=0.0, **shared)
    fkd = Tempered(**shared)
    object.__setattr__(fkd, "gammas", [das.gamma(j, 8) for j in range(7)])
    a, b = run(das, groups=50), run(fkd, groups=50)
    assert a.trace["deaths"].sum() > 0
    assert same(a, b)


# -- tempering ----------------------------------------------------------------------------------------------------------------------------


def test_tempering_rises_from_zero_to_one():
    for tempering in ("exponential", "polynomial"):
        gammas = [DAS(tempering=tempering).gamma(j, 100) for j in range(101)]
        assert gammas[0] == 0
        assert gammas[100] == 1
        assert all(a <= b for a, b in itertools.pairwise(gammas))
        assert gammas[86] < 1 == gammas[87]
    # The paper's γ = 0.008 at T = 100.
    assert DAS().gamma(50, 100) == pytest.approx(1.008**50 - 1, abs=2e-3)


def test_adaptive_tempering_meets_its_ess():
    method = DAS(tempering="adaptive", schedule="every", ess_threshold=0.6)
    population = run(method, groups=40, particles=64, lam=30.0)
    gamma = population.trace["gamma"]
    assert (gamma[1:] >= gamma[:-1]).all()
    most = torch.tensor([method.gamma(j, 8) for j in range(7)], dtype=torch.float64)[:, None]
    assert (gamma <= most).all()
    # Where it neither stayed nor went as far as it may, the ESS is what was aimed at.
    bound = gamma < most * (1 - 1e-9)
    bound[1:] &= gamma[1:] > gamma[:-1] + 1e-9
    assert bound.sum() > 40
    assert torch.allclose(population.trace["ess"][bound], torch.tensor(0.6 * 64, dtype=torch.float64), rtol=1e-4)


def test_the_first_weights_of_das_are_equal_and_nobody_is_selected():
    population = run(DAS(schedule="every", ess_threshold=None, resampling="systematic"), groups=5)
    assert (population.trace["ess"][0] - 16).abs().max() < 1e-9
    assert (population.trace["deaths"][0] == 0).all()


# -- the proposal -------------------------------------------------------------------------------------------------------------------------


def test_paths_telescope_to_the_terminal_twist_and_the_ratios():
    """Without selections log w is λ r(x_0) + Σ log p/q along each path, whatever the twists were."""
    method = TDS(schedule=(), mean="score", clip=None)
    prepared = viot.prepare(MODEL, REWARD, method, particles=16, groups=3, steps=8)
    ratios = 0
    *walk, last = prepared.states()
    problem = prepared.problem
    # By the densities of the two proposals themselves.
    x = problem.start().x
    for step, state in enumerate(walk):
        times, rows = problem.grid.times[step], problem.rows(x)
        prediction, _, g = problem.evaluate(rows, times, problem.group_rows(16), grad=True)
        mean, std = problem.kernel.moments(rows, prediction, problem.grid.coeffs(step), 1.0 if step < 7 else 0.0)
        if step < 7:
            after = problem.rows(state.x)
            p = -((after - mean) ** 2) / (2 * std**2)
            q = -((after - mean - std**2 * g) ** 2) / (2 * std**2)
            ratios = ratios + problem.fold((p - q)[:, 0])
        x = state.x
    assert torch.allclose(last.log_w, last.rewards + ratios, atol=1e-9)
    assert ratios.std() > 0.1


def test_the_x0_proposal_has_the_mean_of_the_tilted_posterior():
    """mean="x0" moves the mean as if x̂0 were x̂0 + σ²/α λ g: checked against the kernel fed with exactly that."""
    seen = {}

    @dataclass(frozen=True)
    class Watched(TDS):
        def propose(self, problem, state):
            j = state.step
            after = super().propose(problem, state)
            if 0 < j < problem.T - 1:
                c, rows = problem.grid.coeffs(j), problem.rows
                x, drift = rows(state.x), rows(self.drift(problem, state))
                mean, std = problem.kernel.moments(x, state.prediction.map(rows), c, 1.0)
                twisted = state.prediction.map(rows).x0 + c.sigma_t**2 / c.alpha_t * problem.lam * rows(state.extra["gradient"])
                expected, _ = problem.kernel.moments(x, viot.Prediction(twisted), c, 1.0)
                seen[j] = (mean + std**2 * drift - expected).abs().max().item()
            return after

    run(Watched(clip=None, mean="x0"), groups=3, lam=0.7)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert max(seen.values()) < 1e-9


def drift_of(method, gradient, step=3, steps=8, lam=1.0):
    """The drift of a step whose gradients (G, K, D) are given, and mean-per-x0 and std of that step."""
    g, k, d = gradient.shape
    model = GaussianMixture([[0.0] * d], 1.0, dtype=gradient.dtype)
    problem = viot.prepare(model, Quadratic(0.0, 1.0), method, particles=k, groups=g, steps=steps, lam=lam).problem
    state = problem.start().but(step=step).with_extra(gradient=gradient)
    return method.drift(problem, state), *problem.kernel.response(problem.grid.coeffs(step), 1.0), problem.grid.coeffs(step)


def test_clip_bounds_the_shift():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(3, 4, 35, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 4)[:, None]
    for mean in ("score", "x0"):
        free, gain, std, c = drift_of(TDS(mean=mean, clip=None), gradient)
        cut, *_ = drift_of(TDS(mean=mean, clip=0.5), gradient)
        shift, bound = std**2 * cut.norm(dim=-1), 0.5 * 35**0.5 * std
        if mean == "x0":
            # Nor may x̂0 move further than half the data's size.
            bound = min(bound, 0.5 * 35**0.5 * gain)
            assert torch.allclose(free, gradient * gain * c.sigma_t**2 / (c.alpha_t * std**2))
        assert (shift <= bound * (1 + 1e-9)).all()
        short = std**2 * free.norm(dim=-1) <= bound
        assert short.any()
        assert not short.all()
        assert torch.allclose(cut[short], free[short])
        assert torch.allclose((cut * free).sum(-1), cut.norm(dim=-1) * free.norm(dim=-1))


def test_near_pure_noise_the_clean_guess_is_not_thrown_out_of_the_data():
    """At α = 5·10⁻⁵, where real grids begin, σ²/α λ g would be astronomic for any network that is not perfectly blind there."""
    gradient = torch.full((1, 2, 784), 0.01, dtype=torch.float64)
    method = TDS(mean="x0")
    problem = viot.prepare(Noisiest(), Quadratic(0.0, 1.0), method, particles=2, steps=8).problem
    state = problem.start().with_extra(gradient=gradient)
    gain, std = problem.kernel.response(problem.grid.coeffs(0), 1.0)
    nats = (std * method.drift(problem, state).norm(dim=-1)) ** 2 / 2
    assert nats.max() < 784 * (gain / std) ** 2
    assert nats.max() < 60 < 784 / 2


class Noisiest(Line):
    """784 dimensions, and a grid that begins as digits' does."""

    event_shape = (784,)

    def grid(self, steps):
        alphas = torch.linspace(5e-5, 1, steps + 1, dtype=torch.float64)
        return viot.Grid(alphas[:-1], alphas, (1 - alphas**2).sqrt())

    def prior(self, n, generator):
        return torch.randn(n, 784, generator=generator, dtype=self.dtype)


def test_gradients_beyond_the_states_precision_are_cut():
    gradient = torch.full((1, 2, 30), 1e37, dtype=torch.float32)
    drift, _, std, _ = drift_of(TDS(mean="score"), gradient, lam=100.0)
    assert drift.isfinite().all()
    assert torch.allclose(std * drift.norm(dim=-1), torch.tensor(30**0.5), rtol=1e-4)


def test_the_drift_of_das_is_that_of_the_next_strength():
    """Section 6.2: the twist at step j has γ_j, the drift γ_{j+1}."""
    gradient = torch.full((1, 2, 3), 1e-3, dtype=torch.float64)
    for step in (1, 3, 6):
        method = DAS(clip=None)
        drift, *_ = drift_of(method, gradient, step=step, lam=2.0)
        assert torch.allclose(drift, gradient * 2.0 * method.gamma(step + 1, 8))


def test_memory_that_runs_out_when_slices_are_joined(monkeypatch):
    """… is tried again in halves, and nothing counts twice: rewards and gradients have their rows once."""
    import viot.problem as door

    settings = {"particles": 8, "steps": 6, "groups": 1, "progress": False, "batch_size": 4}
    with quiet():
        whole = viot.sample(Line(), Differentiable(), "tds", **settings)
    put, left = door._put, [1]

    def scarce(*args):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("pretended")
        return put(*args)

    monkeypatch.setattr(door, "_put", scarce)
    with quiet():
        found = viot.sample(Line(), Differentiable(), "tds", **settings)
    assert torch.equal(found.x0, whole.x0)
    assert (found.nfe, found.grad_rows, found.reward_rows) == (whole.nfe, whole.grad_rows, whole.reward_rows)


def test_combinations_are_asked_like_their_members():
    from viot.rewards import Noisy, Sum

    undeclared = lambda samples: -samples.square().sum(1)
    for reward in (Sum([undeclared]), Noisy(undeclared, 0.1), Sum([undeclared, Differentiable()])):
        with quiet():
            assert viot.sample(Line(), reward, "tds", particles=4, steps=4, progress=False).grad_rows == 12
    assert Sum([Differentiable()]).differentiable is True
    assert Sum([Differentiable(), "jpeg"]).differentiable is False


def test_guidance_on_digits_keeps_more_than_one_lineage():
    """A trained network, 784 dimensions: a few particles agree on the evidence within a few nats, and are not one particle's children."""
    with quiet():
        found = viot.sample("digits", "digit:7", "tds", particles=12, steps=12, groups=2, progress=False, batch_size=24)
    assert (found.log_z > -15).all()
    assert (found.surviving_lineages > 1).all()
    assert found.mean().mean() > -1.0


def test_gradients_that_are_not_finite_count_as_none():
    class Cliff(Differentiable):
        def __call__(self, samples):
            return torch.where(samples[:, 0] > 0, samples[:, 0].clamp_min(0).sqrt(), 0.0 * samples[:, 0])

    with quiet():
        population = viot.sample(Line(), Cliff(), "tds", particles=16, steps=6, groups=2, progress=False)
    assert population.x0.isfinite().all()
    assert population.log_weights.isfinite().all()


def test_one_graph_per_slice_and_the_same_draws():
    """Gradients in slices: the memory of batch_size rows, bit-identical answers, and no more than a slice under a graph."""
    largest = 0

    class Watched(Differentiable):
        def __call__(self, samples):
            nonlocal largest
            if samples.requires_grad:
                largest = max(largest, len(samples))
            return super().__call__(samples)

    def one(size):
        with quiet():
            return viot.sample(Line(), Watched(), "tds", particles=16, steps=6, groups=2, progress=False, batch_size=size)

    whole = one(None)
    assert largest == 32
    largest = 0
    sliced = one(5)
    assert largest == 5
    assert torch.equal(whole.x0, sliced.x0)
    assert torch.equal(whole.log_weights, sliced.log_weights)


# -- DPS ------------------------------------------------------------------------------------------------------------------------------------


def test_dps_is_the_base_sampler_where_the_reward_is_flat():
    flat = Quadratic(0.0, 0.0)
    base = run("base", reward=flat, groups=5)
    assert torch.allclose(run(DPS(), reward=flat, groups=5).samples, base.samples, atol=1e-12)
    population = run(DPS(), groups=5)
    assert not torch.allclose(population.samples, base.samples)
    assert not population.exact
    assert population.log_z.isnan().all()
    assert torch.allclose(population.weights, torch.full((1, 1), 1 / 16, dtype=torch.float64))


def test_dps_draws_from_its_own_drifted_chain():
    """The law of a linear chain with a linear drift is known: m' = m + std² λ g, by recursion, in the reward form."""
    problem = viot.prepare(MODEL, REWARD, DPS(clip=None), particles=2, steps=8).problem
    m, v = torch.zeros(1, 1, dtype=torch.float64), 1.0
    for j in range(8):
        eta = 1.0 if j < 7 else 0.0

        def mean(x, j=j, eta=eta):
            prediction, _, g = problem.evaluate(x, problem.grid.times[j], torch.zeros(len(x), dtype=torch.long), grad=True)
            mu, std = problem.kernel.moments(x, prediction, problem.grid.coeffs(j), eta)
            return mu + std**2 * g, float(std)

        (a, std), (b, _) = mean(m), mean(m + 1)
        m, v = a, float(b - a) ** 2 * v + std**2
    x = run(DPS(clip=None), groups=1, particles=40_000).samples.flatten()
    assert x.mean().item() == pytest.approx(m.item(), abs=4 * (v / 40_000) ** 0.5)
    assert x.var().item() == pytest.approx(v, rel=0.03)
    # It is not the target: nothing corrects the push.
    assert abs(m.item() - law().first) > 0.005


class Square(Line):
    """Pictures of 1 × 2 × 2 pixels."""

    event_shape = (1, 2, 2)

    def prior(self, n, generator):
        return torch.randn(n, 1, 2, 2, generator=generator, dtype=self.dtype)

    def predict(self, x, t, group):
        gain = (1 - t**2).sqrt() * 0.5 / ((1 - t**2) * 0.5 + t**2)
        return viot.Prediction(x * gain[:, None, None, None])


def seen(y=0.7):
    return Inpainting(torch.full((1, 2, 2), y), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), noise=0.1)


def test_dps_in_the_form_of_inverse_problems_steps_against_the_norm():
    """x_s = x'_s − ζ ∇‖y − A x̂0‖, against a gradient taken by hand; each sample by its own norm, so alone it moves alike."""
    zeta, steps = 0.3, 5

    def walk(zeta):
        prepared = viot.prepare(Square(), seen(), DPS(zeta=zeta, eta=0.0), particles=3, steps=steps)
        return prepared, [state.x for state in prepared.states()]

    prepared, pushed = walk(zeta)
    problem = prepared.problem
    x = problem.start().x
    for j in range(steps):
        rows = problem.rows(x).requires_grad_()
        prediction = prepared.problem.evaluate.model.predict(rows, problem.grid.times[j].expand(3), None)
        norm = (0.7 - prediction.x0[:, 0, 0]).norm(dim=-1)
        slope = torch.autograd.grad(norm.sum(), rows)[0]
        plain, _ = problem.kernel.moments(rows.detach(), prediction, problem.grid.coeffs(j), 0.0)
        assert torch.allclose(problem.rows(pushed[j]), plain.detach() - zeta * slope, atol=1e-12)
        x = pushed[j]
    # ζ = 0 is the base sampler.
    free = viot.prepare(Square(), seen(), viot.methods.Base(eta=0.0), particles=3, steps=steps)
    assert torch.equal(walk(0.0)[1][-1], [s.x for s in free.states()][-1])


def test_likelihoods_by_every_gradient_method():
    """Two of four pixels are seen: the posterior mean of the chain's own law, which factorises over pixels."""
    one = GaussianMixture([[0.0]], 0.5)
    one.grid = Line().grid
    one.predict = lambda x, t, group: viot.Prediction(x * ((1 - t**2).sqrt() * 0.5 / ((1 - t**2) * 0.5 + t**2))[:, None])
    tilted, _ = one.chain_law(6, 1.0).tilt(0.7, 1 / 0.1**2)
    free = one.chain_law(6, 1.0)
    for method in (TDS(mean="x0"), TDS(schedule="every"), DAS(schedule="every")):
        with quiet():
            population = viot.sample(Square(), seen(), method, particles=64, groups=300, steps=6, progress=False)
        z = population.log_z.exp()
        for pixel, truth in ((0, tilted.mean.item()), (2, free.mean.item())):
            gap = z * (population.mean(population.x0)[:, 0].flatten(1)[:, pixel] - truth)
            assert abs(gap.mean() / (gap.std() / 300**0.5)) < 4.5


# -- what cannot be -------------------------------------------------------------------------------------------------------------------------


class Counting(Line):
    rows = 0

    def predict(self, x, t, group):
        Counting.rows += len(x)
        return super().predict(x, t, group)


def blind(samples):
    return torch.from_numpy(samples.detach().numpy()).sum(1)


class Opaque(Counting):
    differentiable = False


@pytest.mark.parametrize("method", ["tds", "das", "dps"])
@pytest.mark.parametrize(
    ("model", "reward", "match"),
    [
        (Counting(), blind, "no gradient reaches the decoded samples through the reward blind"),
        (Counting(), lambda samples: samples.sum(1).round().detach(), "no gradient reaches"),
        (Opaque(), Differentiable(), "Opaque declares differentiable = False"),
        (Tokens(), lambda texts: torch.tensor([float(len(t)) for t in texts]), "the states of Tokens are tokens"),
    ],
    ids=["numpy", "detached", "opaque model", "tokens"],
)
def test_without_a_gradient_there_is_a_sentence_before_the_first_call(method, model, reward, match):
    Counting.rows = 0
    with pytest.raises(TypeError, match=match) as caught:
        viot.sample(model, reward, method, particles=4, steps=4, progress=False)
    assert "need no gradient" in str(caught.value)
    assert Counting.rows == 0


def test_jpeg_has_no_gradient():
    with pytest.raises(TypeError, match="jpeg"):
        viot.sample("digits", "jpeg", "tds", particles=2, steps=2, progress=False)


@pytest.mark.parametrize("method", [TDS, DAS, DPS])
def test_deterministic_steps_have_no_density(method):
    with pytest.raises(ValueError, match=r"eta=0.*eta > 0"):
        method(eta=0.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TDS(mean="median"), "'score' or 'x0'"),
        (lambda: TDS(clip=0), "clip is a multiple"),
        (lambda: TDS(guidance=float("nan")), "guidance must be finite"),
        (lambda: DAS(tempering="linear"), "tempering must be"),
        (lambda: DAS(full=0), "share of the steps"),
        (lambda: DAS(tempering="adaptive", ess_threshold=None), "needs ess_threshold"),
        (lambda: DPS(zeta=-1), "step size ≥ 0"),
    ],
)
def test_settings_that_cannot_be(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_zeta_needs_an_inverse_problem():
    with pytest.raises(TypeError, match="the reward close is none"):
        viot.sample(Line(), Differentiable(), DPS(zeta=0.5), particles=4, steps=4, progress=False)


def test_a_kernel_that_does_not_say_how_far_it_moves():
    class Own(Line):
        class kernel:
            drifts = True

            @staticmethod
            def step(*args, **kwargs):
                return viot.Gaussian().step(*args, **kwargs)

            @staticmethod
            def guess(*args, **kwargs):
                return viot.Gaussian().guess(*args, **kwargs)

    settings = {"particles": 4, "steps": 4, "progress": False}
    with pytest.raises(TypeError, match=r"response\(coeffs, eta\)"):
        viot.sample(Own(), Differentiable(), "tds", **settings)
    with quiet():
        found = viot.sample(Own(), Differentiable(), TDS(mean="score", clip=None), **settings)
        usual = viot.sample(Line(), Differentiable(), TDS(mean="score", clip=None), **settings)
    assert torch.equal(found.x0, usual.x0)


def test_potentials_reach_what_they_are_told_to():
    """`reach` adds what is missing to log_w and remembers it: twice is once."""
    problem = viot.prepare(Line(), Differentiable(), TDS(), particles=4, steps=4).problem
    state = TDS().prepare(problem, problem.start())
    target = torch.randn(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = Guided.reach(state, target)
    assert torch.equal(once.log_w, target)
    assert torch.equal(Guided.reach(once, target).log_w, target)
    assert weights.alive(once.log_w).all()
