"""Rule number one: every method draws from the tilted law of the chain that it runs, and what is broken on purpose is found out."""

from dataclasses import dataclass

import pytest
import torch
from exact import MODEL, REWARD, Truth, is_exact, law, run, z_scores

import viot
from viot.methods import FKD, FVD, VASR, Auto, Importance
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic
from viot.value import Rollout, Smoothed, X0Samples

UNBIASED = {
    "importance": Importance(),
    "importance, eta .5": Importance(eta=0.5),
    **{f"fkd {p}": FKD(potential=p) for p in ("diff", "max", "sum", "rt")},
    **{f"fkd {p}, always": FKD(potential=p, ess_threshold=None) for p in ("diff", "max", "sum", "rt")},
    "fkd every step": FKD(schedule="every"),
    "fkd rollout": FKD(value=Rollout(2, 3)),
    "auto": Auto(schedule="every", ess_threshold=0.9),
    "auto, eta .5": Auto(schedule="every", ess_threshold=None, eta=0.5),
    "auto, power .5": Auto(power=0.5, prior=0.0),
    "vasr": VASR(),
    "vasr, eta .5": VASR(eta=0.5),
    "vasr every step": VASR(schedule="every"),
    "vasr z-scored": VASR(standardize=True),
    "vasr temperature 0": VASR(temperature=0.0),
    "vasr temperature .3": VASR(temperature=0.3),
    "vasr temperature 2": VASR(temperature=2.0),
    "vasr unordered": VASR(order="none"),
    "vasr ratio order": VASR(order="ratio"),
    "vasr masses=weights": VASR(masses="weights"),
    "vasr carry": VASR(carry_potential=True),
    "vasr adaptive": VASR(ess_threshold=0.7),
    "vasr adaptive carry": VASR(ess_threshold=0.7, carry_potential=True),
    **{f"vasr {s}": VASR(resampling=s) for s in ("multinomial", "stratified", "residual", "ssp", "killing")},
    "vasr rollout": VASR(value=Rollout(2, 3)),
    "vasr one-step rollout": VASR(value="rollout"),
    "vasr samples": VASR(value=X0Samples(2)),
    "vasr smoothed": VASR(value=Smoothed(keep=0.5)),
    "vasr a callable": VASR(value=lambda problem, state: -state.x[..., 0].abs().cpu()),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_at_sixteen_particles(name):
    method = UNBIASED[name]
    assert method.exact
    # Sums of early rewards tilt far beyond the target and are taken back at the end: at λ = 1 the estimate is still unbiased, but its tail
    # is so heavy that a standard error means nothing.
    lam = 0.25 if "sum" in name else 1.0
    population = run(method, groups=1000, lam=lam)
    assert population.nfe <= 1000 * 16 * 8
    assert z_scores(population, law(eta=method.eta, lam=lam)).abs().max() < 4.0
    if population.trace.get("deaths") is not None and "temperature 0" not in name:
        # A test of selection must select.
        assert population.trace["deaths"].sum() > 0


def test_strength_other_than_one():
    for lam in (0.3, 3.0):
        assert is_exact(run(VASR(), lam=lam), law(lam=lam))
        assert is_exact(run(FKD(), lam=lam), law(lam=lam))
    assert is_exact(run(VASR(), lam=-0.2), law(lam=-0.2))


# -- negative controls: the same check, on samplers with a classic mistake --------------------------------------------------------------


@dataclass(frozen=True)
class ForgetsWeights(FKD):
    """Adaptive, and where nothing was resampled the weights are gone: the bug of published code."""

    def select(self, problem, state):
        after = super().select(problem, state)
        evidence = torch.logsumexp(state.log_w, -1, keepdim=True) - torch.tensor(float(state.log_w.shape[1])).log()
        return after.but(log_w=evidence.expand_as(after.log_w).clone())


@dataclass(frozen=True)
class ForgetsMasses(VASR):
    """Selects by optimal masses and does not divide by them."""

    def select(self, problem, state):
        return super().select(problem, state).but(log_w=state.log_w)


@dataclass(frozen=True)
class ForgetsTheGather(VASR):
    """Permutes the states but not what the network said of them: an offspring moves along another particle's direction."""

    def select(self, problem, state):
        return super().select(problem, state).but(prediction=state.prediction)


@dataclass(frozen=True)
class NoTerminal(FKD):
    def finish(self, problem, state):
        return state


@pytest.mark.parametrize("wrong", [ForgetsWeights(), ForgetsMasses(), ForgetsTheGather(), NoTerminal(schedule=(0.2,))])
def test_mistakes_are_found(wrong):
    assert z_scores(run(wrong), law())[1:].abs().max() > 6.0


def test_the_laws_of_chain_and_data_are_told_apart():
    """At eight steps the data's law is visibly another one: a test against it would fail a correct sampler."""
    tilted, log_z = MODEL.data_law().tilt(1.5, 2.0)
    mean = tilted.mean.item()
    data = Truth(torch.tensor(log_z).exp().item(), mean, tilted.cov.item() + mean**2)
    assert z_scores(run(VASR()), data).abs().max() > 6.0


def test_chain_law_is_that_of_the_draws_and_tends_to_the_data():
    model = GaussianMixture([[0.5, -0.5]], [[[1.0, 0.6], [0.6, 0.8]]])
    for eta in (0.0, 0.5, 1.0):
        known = model.chain_law(6, eta)
        x = run("base" if eta == 1 else Importance(eta=eta), model=model, groups=1, particles=40_000, steps=6, lam=0.0).samples[0]
        assert (x.mean(0) - known.mean[None]).abs().max() < 0.02
        assert (x.T.cov() - known.cov).abs().max() < 0.03
    far = [(model.chain_law(t, 1.0).cov - model.data_law().cov).abs().max() for t in (10, 40, 160)]
    assert far[0] > 2.5 * far[1] > 6 * far[2]


# -- a mixture, against quadrature of the same kernel -----------------------------------------------------------------------------------

MIXTURE = GaussianMixture([[-1.5], [1.0], [2.0]], [0.2, 0.1, 0.3], [0.5, 0.3, 0.2])
PULL = Quadratic(center=2.5, precision=0.8)


def mixture_law(eta):
    tilted, log_z = MIXTURE.chain_density(10, eta).tilt(lambda x: -0.4 * (x - 2.5) ** 2)
    return Truth(torch.tensor(log_z).exp().item(), tilted.mean, tilted.expect(lambda x: x**2))


@pytest.mark.parametrize("method", [Importance(), FKD(), FKD(potential="max"), VASR(), VASR(standardize=True), VASR(eta=0.6)], ids=repr)
def test_mixture(method):
    assert is_exact(run(method, model=MIXTURE, reward=PULL, steps=10, groups=1000), mixture_law(method.eta))


def test_mixture_mistake_is_found():
    assert not is_exact(run(ForgetsMasses(), model=MIXTURE, reward=PULL, steps=10, groups=1000), mixture_law(1.0))


def test_quadrature_agrees_with_the_closed_form():
    density, known = MODEL.chain_density(8, 0.7), MODEL.chain_law(8, 0.7)
    assert density.mean == pytest.approx(known.mean.item(), abs=1e-6)
    assert density.var == pytest.approx(known.cov.item(), abs=1e-6)
    tilted, log_z = density.tilt(lambda x: -((x - 1.5) ** 2))
    closed, closed_log_z = known.tilt(1.5, 2.0)
    assert log_z == pytest.approx(closed_log_z, abs=1e-6)
    assert tilted.mean == pytest.approx(closed.mean.item(), abs=1e-6)


def test_mixture_tilt_in_closed_form():
    """Proposition: a Gaussian mixture times a Gaussian is one; in two dimensions, against importance weights of the data."""
    model = GaussianMixture([[1.0, 0.0], [-1.0, 2.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.4, 0.0], [0.0, 1.0]]], [0.3, 0.7])
    lam, center, precision = 0.8, torch.tensor([0.5, 1.5]), torch.tensor([[1.0, 0.4], [0.4, 2.0]])
    tilted, log_z = model.data_law().tilt(center, precision, lam)
    gen = torch.Generator().manual_seed(0)
    which = torch.multinomial(model.law.weights, 400_000, True, generator=gen)
    root = torch.linalg.cholesky(model.law.covs)
    x = model.law.means[which] + torch.einsum("nij,nj->ni", root[which], torch.randn(400_000, 2, generator=gen, dtype=torch.float64))
    w = (lam * Quadratic(center, precision)(x)).exp()
    assert w.mean().log().item() == pytest.approx(log_z, abs=0.01)
    assert torch.allclose((w[:, None] * x).sum(0) / w.sum(), tilted.mean, atol=0.01)


# -- convergence in K, for what is exact only as K grows --------------------------------------------------------------------------------


def fvd_error(method, particles, groups, lam=1.0):
    """Error of the weighted mean, averaged over groups, and its standard error."""
    population = run(method, particles=particles, groups=groups, lam=lam)
    x = population.mean(population.samples[..., 0])
    truth = law(lam=lam, eta=method.eta_base)
    return (x.mean() - truth.first).abs().item(), (x.std() / len(x) ** 0.5).item(), population


FULL = {"eta_base": 1.0, "eta_rebirth": 1.0}


@pytest.mark.parametrize(
    "method",
    [
        FVD(**FULL),
        FVD(eta_base=0.5, eta_rebirth=0.5),
        FVD(**FULL, split="snr"),
        FVD(**FULL, split=lambda grid, steps: range(1, len(steps) + 1)),
        FVD(**FULL, norm="upper_bound"),
        FVD(**FULL, alpha_star=0.15),
        FVD(**FULL, alpha_star=0.15, controller="additive", rho=8.0),
        FVD(**FULL, alpha_star=0.15, controller="bisection"),
        FVD(**FULL, lam0=6.0, cap=0.2),
        FVD(**FULL, lam0=6.0, cap=0.2, cap_policy="temper"),
        FVD(**FULL, rebirth_noise="all_later_steps"),
        FVD(**FULL, value=Rollout(1, 2)),
    ],
    ids=lambda m: ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in m.settings().items() if v != getattr(FVD(), k)),
)
def test_fvd_converges(method):
    error, se, population = fvd_error(method, 2000, 40)
    assert error < 0.004 + 4 * se
    z = population.log_z.exp().mean().item()
    assert z == pytest.approx(law(eta=method.eta_base).z, rel=0.03)
    assert population.trace["deaths"].sum() > 0


def test_fvd_converges_as_particles_grow():
    """At K = 8 the bias shows; at K = 512 it does not."""
    few, few_se, _ = fvd_error(FVD(**FULL), 8, 3000, lam=2.0)
    many, many_se, _ = fvd_error(FVD(**FULL), 512, 100, lam=2.0)
    assert few > 4 * few_se
    assert many < few / 4 + many_se


def test_fvd_mistakes_are_found():
    """Without G_0 the tilt is only partly applied; a binding cap without its correction stays biased however large K is."""

    @dataclass(frozen=True)
    class Unfinished(FVD):
        def finish(self, problem, state):
            return state

    @dataclass(frozen=True)
    class Uncorrected(FVD):
        def deaths(self, log_p, u, tie):
            tempered, dead, _ = super().deaths(log_p, u, tie)
            return tempered, dead, log_p

    strong = {**FULL, "lam0": 6.0, "cap": 0.2}
    for wrong in (Unfinished(**FULL), Uncorrected(**strong), FVD(**strong, cap_policy="spare_best")):
        error, se, _ = fvd_error(wrong, 2000, 20)
        assert error > 0.02 + 4 * se, wrong
    assert not FVD(cap_policy="spare_best").exact


def test_fvd_effective_target():
    """target="effective" weights with the strength that the path applied, and says which it was."""
    method = FVD(**FULL, lam0=0.5, target="effective")
    population = run(method, particles=2000, groups=20)
    assert not population.exact
    x = population.mean(population.samples[..., 0]).mean().item()
    assert x == pytest.approx(law(lam=0.5).first, abs=0.01)
    assert (population.trace["lam"] == 0.5).all()


# -- published code, reproduced ---------------------------------------------------------------------------------------------------------


class AutoRegression:
    """x_T ~ N(0,1), x_{t−1} = a x_t + √(1−a²) e: every law is N(0,1), E[x0|x_t] = a^t x_t. A Model with a kernel of its own."""

    event_shape, dtype, device = (1,), torch.float64, torch.device("cpu")
    a = 0.9

    class Kernel:
        drifts = True

        def step(self, x_t, prediction, coeffs, eta, draw, drift=None):
            a = AutoRegression.a
            noise = draw.normal(tuple(x_t.shape), x_t.dtype, x_t.device)
            return a * x_t + (1 - a * a) ** 0.5 * noise, torch.zeros(len(x_t), dtype=torch.float64)

        def guess(self, x_t, prediction, draw=None, n=1):
            return prediction.x0[:, None].expand(-1, n, -1)

    kernel = Kernel()

    def grid(self, steps):
        signal = self.a ** torch.arange(steps, -1, -1, dtype=torch.float64)
        return viot.Grid(torch.arange(steps, 0, -1), signal, (1 - signal**2).sqrt())

    def prior(self, n, generator):
        return torch.randn(n, 1, generator=generator, dtype=self.dtype)

    def predict(self, x, t, group):
        return viot.Prediction(self.a ** t[:, None] * x)

    def decode(self, x0, group):
        return x0


def test_released_code_misses_what_the_paper_finds():
    """r = −(x−1)², exact mean 2/3, Z = .41369; states 8, 6, 4, 2 steps from the end are resampled, K = 64."""
    settings = {"schedule": (0.1, 0.3, 0.5, 0.7), "resampling": "multinomial"}
    shared = {"model": AutoRegression(), "reward": Quadratic(1.0, 2.0), "steps": 10, "particles": 64, "groups": 1500}

    def mean(method):
        population = run(method, **shared)
        return population.mean(population.samples[..., 0]).mean().item(), population

    for threshold in (None, 0.5):
        found, population = mean(FKD(**settings, ess_threshold=threshold))
        assert found == pytest.approx(2 / 3, abs=0.01)
        z = population.log_z.exp()
        assert abs(z.mean() - 0.41369) < 4 * z.std() / len(z) ** 0.5
    always = mean(FKD(**settings, compat="released", ess_threshold=None))[0]
    adaptive = mean(FKD(**settings, compat="released", ess_threshold=0.5))[0]
    assert always == pytest.approx(0.542, abs=0.04)
    assert adaptive == pytest.approx(0.214, abs=0.04)
    assert mean(VASR(schedule=settings["schedule"]))[0] == pytest.approx(2 / 3, abs=0.01)
    assert mean(FVD(schedule=settings["schedule"], cap=1.0))[0] == pytest.approx(0.665, abs=0.012)


# -- what the yardsticks return -----------------------------------------------------------------------------------------------------------


def test_base_is_the_chain_and_knows_the_evidence():
    population = run("base", groups=1000, particles=64)
    known = MODEL.chain_law(8, 1.0)
    x = population.samples.flatten()
    assert abs(x.mean() - known.mean.item()) < 4 * (known.cov.item() / len(x)) ** 0.5
    z = population.log_z.exp()
    assert abs(z.mean() - law().z) < 4 * z.std() / len(z) ** 0.5
    assert torch.allclose(population.weights, torch.full((1, 1), 1 / 64, dtype=torch.float64))


def test_best_of_n_has_the_law_of_the_best():
    """P(best of n has reward ≤ q) = F(q)^n, with F from base draws."""
    base = run("base", groups=500, particles=64, seed=1).rewards.flatten()
    best = run(viot.methods.BestOfN(n=4), groups=500, particles=64)
    assert best.shape == (500, 16)
    for q in (0.3, 0.6, 0.9):
        level = base.quantile(q)
        share = (best.rewards <= level).double().mean().item()
        assert share == pytest.approx(q**4, abs=4 * (q**4 * (1 - q**4) / 8000) ** 0.5 + 0.015)
    one = run(viot.methods.BestOfN(n=None), groups=50, particles=64)
    everyone = run("base", groups=50, particles=64)
    assert torch.equal(one.rewards[:, 0], everyone.rewards.amax(1)), "best-of-n of one pool is the best base sample"


def test_rewards_seen_are_those_returned():
    population = run(VASR(), groups=5)
    assert torch.allclose(population.rewards, REWARD(population.samples.flatten(0, 1)).view(5, 16))
