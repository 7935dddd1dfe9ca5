"""The analyses behind the papers' figures: numbers of a selection by hand, probes that change nothing, tasks that run and draw."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import quiet, viot_
from test_report import check_page

import viot
from viot import bench, resample, weights
from viot.bench import analysis, probe, reference
from viot.bench.measure import TRACED, Reading
from viot.bench.preset import Figure
from viot.bench.probe import mean_rank, probed, probes, rank_correlation
from viot.methods import FKD, FVD, VASR, make
from viot.models.gaussian import GaussianMixture
from viot.rewards import Quadratic, as_reward
from viot.sample import prepare
from viot.spelling import method_spec

OURS = [
    "offspring",
    "temperature",
    "temperature-digits",
    "ordering",
    "allocation",
    "spread",
    "killed",
    "fvd-theory",
    "noise",
    "noise-digits",
]


def rows(folder):
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rows").iterdir())]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def world(method, k=12, groups=2, lam=1.0):
    model = GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.09)
    return prepare(model, Quadratic([2.0, 0.0], 0.3), method, particles=k, groups=groups, steps=10, lam=lam)


def selection(method, rewards, log_w=None):
    """A problem, and a state that is about to be selected, with these rewards (G, K)."""
    run = world(method, rewards.shape[1], len(rewards))
    p = run.problem
    state = method.look(p, method.prepare(p, p.start())).but(rewards=rewards)
    return p, state if log_w is None else state.but(log_w=log_w)


# -- the rank of the killed -----------------------------------------------------------------------------------------------------------


def test_the_rank_of_the_killed_by_hand():
    values = tensor([[3.0, 1.0, 4.0, 2.0, 5.0]] * 4)
    who = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    # Ranks are 2, 0, 3, 1 and 4 of 4.
    assert mean_rank(values, who).tolist()[:3] == [0.125, 1.0, 0.5]
    assert mean_rank(values, who)[3].isnan(), "nobody was killed"
    tied = tensor([[1.0, 1.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    # The three ones have the ranks 1, 2 and 3, in the mean 2 of 3, whichever of them it is.
    assert mean_rank(tied, torch.tensor([[0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)).tolist() == pytest.approx([2 / 3, 0.5])
    assert mean_rank(tied, torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)).tolist() == pytest.approx([2 / 3, 0.5])


def test_a_blind_choice_kills_the_middle_and_a_seeing_one_does_not():
    values = tensor([0.3, -7.0, 0.3, 2.0, 9.0])
    every = [[i in some for i in range(5)] for some in itertools.combinations(range(5), 2)]
    assert mean_rank(values.expand(len(every), 5), torch.tensor(every)).mean() == pytest.approx(0.5)
    r = torch.randn(400, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = {}
    for tau in (0.0, 1.0):
        p, state = selection(VASR(temperature=tau, resampling="multinomial"), r)
        after = VASR(temperature=tau, resampling="multinomial").choose(p, state)
        ranks[tau] = probes["ranks"].make(p, state, None, after.history[-1].ancestors.long())["killed_rank"].nanmean().item()
    # A mean rank of about six of sixteen has a standard deviation of .1, over 400 groups .005.
    assert ranks[0.0] == pytest.approx(0.5, abs=0.02)
    assert ranks[1.0] < 0.4


# -- what is read of a trace ----------------------------------------------------------------------------------------------------------


def test_numbers_of_the_trace_by_hand():
    with quiet():
        p = viot.sample("mixture", "modes", "vasr", particles=6, groups=2, steps=10, lam=0.2, progress=False)
    s = len(p.ancestors)
    made = tensor(range(2 * s)).view(s, 2)
    p = replace(p, trace={**p.trace, "offspring_variance": made, "deaths": torch.full((s, 2), 3.0), "killed_rank": made / 100})
    asked = Reading(trace=("offspring variance", "killed", "killed rank", "lineages by step", "modes pick"))
    found, curves = asked(p, viot.load("mixture"), {}), asked.curves(p)
    assert found["offspring variance"] == pytest.approx((2 * s - 1) / 2)
    assert found["killed"] == 0.5
    assert found["killed rank"] == pytest.approx((2 * s - 1) / 200)
    assert "lineages by step" not in found, "a mean of it over the run says nothing"
    assert curves["step"] == p.trace["step"].tolist()
    assert curves["offspring variance"] == [2 * i + 0.5 for i in range(s)]
    by_hand = [sum(len(set(roots.tolist())) for roots in at) / 2 for at in _roots(p.ancestors)]
    assert curves["lineages by step"] == by_hand
    assert by_hand[-1] == found["lineages"]
    plain = Reading()
    assert not set(TRACED) & set(plain(p, viot.load("mixture"), {}))
    assert plain.curves(p) == {}


def _roots(ancestors):
    now = torch.arange(ancestors.shape[-1]).expand(ancestors.shape[1:])
    for parents in ancestors.long():
        now = now.gather(-1, parents)
        yield now


def test_a_selection_that_waited_has_no_offspring_variance():
    with quiet():
        p = viot.sample("mixture", "modes", FKD(schedule=2), particles=6, groups=1, steps=10, lam=0.2, progress=False)
    ess = torch.full_like(p.trace["ess"], 2.9)
    ess[0] = 3.1
    p = replace(p, trace={**p.trace, "ess": ess, "offspring_variance": torch.full_like(ess, 0.7)})
    assert TRACED["offspring variance"].of(p)[:, 0].tolist() == pytest.approx([math.nan, *[0.7] * (len(ess) - 1)], nan_ok=True)
    p.config["method"]["ess_threshold"] = None
    assert TRACED["offspring variance"].of(p)[0, 0] == pytest.approx(0.7)


def test_masses_that_carry_the_tilt_are_as_good_as_those_that_apply_it():
    """Weights with difference potentials are the optimal masses: the same run, and the same V_cont."""
    with quiet():
        settings = {"particles": 16, "groups": 2, "steps": 10, "lam": 0.2, "progress": False}
        a, b, c = (
            viot.sample("mixture", "modes", VASR(**kind), **settings) for kind in ({}, {"masses": "weights"}, {"carry_potential": True})
        )
    assert torch.equal(a.ancestors, b.ancestors)
    assert torch.equal(a.samples, b.samples)
    assert a.trace["v_cont"].flatten().tolist() == pytest.approx([1.0] * a.trace["v_cont"].numel())
    assert b.trace["v_cont"].flatten().tolist() == pytest.approx([1.0] * b.trace["v_cont"].numel())
    assert (c.trace["v_cont"] > 1.001).any()
    assert not torch.equal(a.ancestors, c.ancestors)


# -- probes ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [VASR(), FVD(), FKD(schedule=2, ess_threshold=None)], ids=["vasr", "fvd", "fkd"])
def test_a_probe_changes_nothing_and_costs_nobody(monkeypatch, method):
    monkeypatch.setattr(probe, "ROLLOUTS", 3)
    names = ["ranks", "schemes", *(["spread", "orders", "allocations"] if isinstance(method, VASR) else [])]
    with quiet():
        plain, watched = world(method).finish(progress=False), probed(world(method), names).finish(progress=False)
    assert torch.equal(plain.samples, watched.samples)
    assert torch.equal(plain.log_weights, watched.log_weights)
    assert [getattr(plain, n) for n in ("nfe", "reward_rows", "decode_rows", "faults")] == [
        getattr(watched, n) for n in ("nfe", "reward_rows", "decode_rows", "faults")
    ]
    more = set(watched.trace) - set(plain.trace)
    assert {"killed_rank", "offspring variance/systematic"} <= more
    assert all(torch.equal(plain.trace[n].nan_to_num(7), watched.trace[n].nan_to_num(7)) for n in plain.trace)
    assert all(watched.trace[n].shape == (len(plain.ancestors), 2) for n in more)
    assert plain.config == watched.config


def test_who_selects_nothing_is_not_probed_and_who_selects_late_cannot_roll_out():
    run = world(make("dts"))
    assert probed(run, ["ranks"]) is run
    assert probed(world(VASR()), []).method == VASR()
    with quiet(), pytest.raises(ValueError, match=r"selects after the step.*such as vasr"):
        probed(world(FKD(schedule=2)), ["spread"]).finish(progress=False)
    with pytest.raises(ValueError, match=r"unknown probe .rank.\. Did you mean .ranks."):
        probed(run, ["rank"])


def test_schemes_at_the_same_masses(monkeypatch):
    monkeypatch.setattr(probe, "DRAWS", 4000)
    k, r = 5, tensor([[0.4, -1.0, 0.1, 1.3, 0.0]])
    p, state = selection(VASR(), r)
    log_m = weights.normalize(r)
    found = {name: value.item() for name, value in probes["schemes"].make(p, state, log_m, None).items()}
    m = log_m.exp()[0]
    d = (k * m) % 1
    # A variance of 4000 draws is known to a fortieth.
    assert found["offspring variance/multinomial"] == pytest.approx((k * m * (1 - m)).mean().item(), rel=0.05)
    for scheme in ("systematic", "ssp"):
        assert found[f"offspring variance/{scheme}"] == pytest.approx((d * (1 - d)).mean().item(), rel=0.05)
    assert found["parents, share of K/multinomial"] == pytest.approx((1 - (1 - m) ** k).mean().item(), abs=0.01)
    assert found["parents, share of K/systematic"] > found["parents, share of K/multinomial"]
    for scheme in resample.UNBIASED:
        assert abs(found[f"squared bias/{scheme}"]) < 1e-3
    assert found["squared bias/fleming_viot"] > 1e-2


def alone(monkeypatch, finals):
    """Rollouts that end where they are told, (G, K, n)."""
    monkeypatch.setattr(probe, "_finals", lambda problem, state: finals)


def test_vasr_masses_are_the_best_where_its_plug_in_is_true(monkeypatch):
    r = tensor([[0.0, 0.5, 2.0, -1.0, 1.0, 0.2]])
    p, state = selection(VASR(), r)
    # Relative deviations that are the same for all: s_i ∝ exp(r_i).
    alone(monkeypatch, r[..., None] + tensor([-0.3, 0.0, 0.5]))
    true = {n.partition("/")[2]: v.item() for n, v in probes["allocations"].make(p, state, None, None).items()}
    assert true["τ = λ (VASR)"] == 0
    assert all(v > 0.001 for n, v in true.items() if n != "τ = λ (VASR)")
    # By hand, equal weights: V_cont ∝ Σ s² / m with m = s / Σ s, and with m = 1/K.
    s = r.exp()[0]
    assert true["τ = 0 (the weights)"] == pytest.approx(math.log10((6 * (s**2).sum() / s.sum() ** 2).item()))
    # What comes of a particle does not depend on its reward now: nothing beats the weights alone.
    alone(monkeypatch, tensor([-0.3, 0.0, 0.5]).expand(1, 6, 3))
    blind = {n.partition("/")[2]: v.item() for n, v in probes["allocations"].make(p, state, None, None).items()}
    assert min(blind, key=blind.__getitem__) == "τ = 0 (the weights)"
    assert blind["τ = 0 (the weights)"] < -0.1


def test_order_lowers_the_variance_of_a_sum_that_follows_the_reward(monkeypatch):
    monkeypatch.setattr(probe, "SUMS", 2000)
    r = torch.randn(3, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p, state = selection(VASR(), r)
    log_m = weights.normalize(r)
    noise = tensor([-0.1, 0.0, 0.1])
    alone(monkeypatch, 0.5 * r[..., None] + noise)
    found = {n.partition("/")[2]: v.mean().item() for n, v in probes["orders"].make(p, state, log_m, None).items()}
    assert found["systematic, order = score"] < 0.6 * found["systematic, order = none"] < found["multinomial"]
    # With equal weights the ratio is the masses' inverse, and the order the reverse one.
    assert found["systematic, order = ratio"] == pytest.approx(found["systematic, order = score"], rel=0.3)
    # Multinomial by hand: (Σ K m c² − K (Σ m c)²) with c = w μ / (K m), over Σ w² s² / (K m).
    m, ends = log_m.exp(), (0.5 * r[..., None] + noise).exp()
    c = ends.mean(-1) / (16 * m)
    by_hand = (16 * (m * c**2).sum(-1) - 16 * (m * c).sum(-1) ** 2) / ((ends.var(-1) / m).sum(-1) / 16)
    assert found["multinomial"] == pytest.approx(by_hand.mean().item(), rel=0.1)
    # Where everybody has the same prospects there is nothing to sort.
    alone(monkeypatch, noise.expand(3, 16, 3))
    blind = {n.partition("/")[2]: v.mean().item() for n, v in probes["orders"].make(p, state, log_m, None).items()}
    assert blind["systematic, order = score"] > found["systematic, order = score"]


def test_spread_by_hand(monkeypatch):
    monkeypatch.setattr(probe, "ROLLOUTS", 2)
    r = tensor([[0.0, 1.0, 2.0, 3.0]])
    p, state = selection(VASR(), r)
    alone(monkeypatch, tensor([[[0.0, 4.0], [1.0, 3.0], [5.0, 5.0], [8.0, 8.0]]]))
    found = {n.partition("/")[2]: v.item() for n, v in probes["spread"].make(p, state, None, None).items()}
    # Variances 8, 2, 0 and 0; means 2, 2, 5 and 8, whose variance 8.25 holds half of the mean variance, 2.5.
    assert found["within a particle"] == 2.5
    assert found["between particles"] == pytest.approx(8.25 - 1.25)
    assert found["deviation over mean"] == pytest.approx(math.sqrt((5.5**2 + 0.5**2 + 2 * 2.5**2) / 3) / 2.5)
    assert found["worse half over better half"] == math.inf
    assert rank_correlation(tensor([[1.0, 2.0, 9.0]]), tensor([[3.0, 5.0, 4.0]])).item() == pytest.approx(0.5)
    assert rank_correlation(tensor([[1.0, 2.0, 9.0]]), tensor([[-3.0, -4.0, -5.0]])).item() == pytest.approx(-1)


def test_rollouts_of_a_probe_are_those_of_the_chain():
    """From x_T on, alone, a particle ends as the plain model does: means of its rollouts are means of base draws."""
    run = world(VASR(schedule="every"), k=60, groups=1)
    p, method = run.problem, run.method
    state = method.look(p, method.prepare(p, p.start()))
    finals = probe._finals(p, state)
    assert finals.shape == (1, 60, probe.ROLLOUTS)
    with quiet():
        base = world(make("base", eta=1.0), k=4000, groups=1).finish(progress=False)
    sd = base.rewards.std().item()
    # From pure noise every rollout is a draw of its own.
    assert finals.mean().item() == pytest.approx(base.rewards.mean().item(), abs=5 * sd * math.sqrt(1 / finals.numel() + 1 / 4000))


# -- noise ----------------------------------------------------------------------------------------------------------------------------


def test_a_noisy_reward_by_name():
    noisy = as_reward("noisy:0.5:modes")
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    told = noisy(x, group=torch.zeros(4, dtype=torch.long), noise=tensor([0.0, 1.0, -1.0, 2.0]))
    assert (told.total - as_reward("modes")(x)).tolist() == pytest.approx([0, 0.5, -0.5, 1.0])
    assert as_reward("noisy:2:digit:7").name == "noisy(digit:7, 2)"
    for name in ("noisy", "noisy:modes", "noisy:-1:modes", "noisy:0.5", "noisy:inf:modes"):
        with pytest.raises(ValueError, match=r"a standard deviation ≥ 0 and a reward.*write noisy:0\.5:digit:7"):
            as_reward(name)
    with pytest.raises(ValueError, match="Did you mean 'modes'"):
        as_reward("noisy:1:mode")


# -- figures --------------------------------------------------------------------------------------------------------------------------


def written(method, settings, budget=400, reward="modes", curves=None, seed=0, **metrics):
    config = {"method": {"name": method_spec(method)[0], **settings}, "steps": 10, "lam": 1.0, "reward": reward, "reading": {"judges": []}}
    return {"task": "temperature", "method": method, "budget": budget, "seed": seed, "config": config, "metrics": metrics, "curves": curves}


def test_curves_against_a_setting():
    made = [
        written(f"vasr(temperature={tau}, order=none)", {"temperature": tau}, mmd=tau**2 + extra) for tau in (2.0, 1.0) for extra in (0, 1)
    ]
    made += [written("fkd", {}, mmd=0.3), written("vasr(temperature=9)", {"temperature": 9.0}, budget=40, mmd=9.0)]
    vasr, fkd = sorted(analysis.lines(made, Figure("", "mmd", "temperature")), key=lambda line: line.label, reverse=True)
    # Means over seeds; what has no temperature is level; rows of a smaller budget have no part.
    assert (vasr.label, list(vasr.x), list(vasr.y)) == ("vasr(order=none)", [1.0, 2.0], [1.5, 4.5])
    assert (fkd.label, list(fkd.x), list(fkd.y)) == ("fkd", [1.0, 2.0], [0.3, 0.3])
    assert analysis.lines(made, Figure("", "nothing", "temperature")) == []
    lines = {line.label: line for line in analysis.lines(made, Figure("", "mmd", "particles"))}
    assert list(lines["vasr(temperature=9)"].x) == [4]


def test_curves_over_the_steps_and_tables_of_a_family():
    told = {
        "step": [1, 5],
        "killed": [0.2, None],
        "variance/a": [1.0, 3.0],
        "variance/b": [5.0, None],
        "parents/a": [2.0, 2.0],
        "parents/b": [7.0, 7.0],
    }
    other = {**told, "killed": [0.4, 0.1], "variance/a": [3.0, 5.0]}
    made = [written("fvd", {}, curves=told, mmd=0.0), written("vasr", {}, curves=other, mmd=0.0), written("base", {}, mmd=0.0)]
    killed = {line.label: list(line.y) for line in analysis.lines(made, Figure("", "killed"))}
    assert killed["fvd"] == pytest.approx([0.2, math.nan], nan_ok=True)
    assert killed["vasr"] == [0.4, 0.1]
    # Those of a family are of all runs alike.
    a, b = analysis.lines(made, Figure("", "variance/"))
    assert (a.label, list(a.x), list(a.y)) == ("a", [1, 5], [2.0, 4.0])
    assert (b.label, b.y[0]) == ("b", 5.0)
    ((title, head, cells),) = analysis.beside(made)
    assert title == "At every selection: variance, parents"
    assert head == ["", "variance", "parents"]
    # 2 and 4 of two rows of one seed, whose numbers may be related.
    assert cells == [["a", "3", "2"], ["b", "5", "7"]]
    again = {**told, "variance/a": [5.0, 5.0]}
    # 3 and 5 of two seeds: a standard deviation of √2 over √2.
    assert analysis.beside([*made, written("fvd", {}, curves=again, seed=1, mmd=0.0)])[0][2][0] == ["a", "4.0 ± 1.0", "2"]


def test_noises_stand_apart():
    made = [written("vasr", {}, reward=f"noisy:{sigma}:modes", modes=float(sigma)) for sigma in (0.5, 2)]
    assert [(title, len(part)) for title, part in analysis.apart(made)] == [(", noise σ = 0.5", 1), (", noise σ = 2", 1)]
    assert analysis.apart(made[:1]) == [("", made[:1])]
    (line,) = analysis.lines(made, Figure("", "modes", "noise"))
    assert (list(line.x), list(line.y)) == ([0.5, 2.0], [0.5, 2.0])


# -- the tasks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_every_method_of_an_analysis_can_be_made(name):
    task = bench.tasks[name].make()
    for text in task.line_up:
        method, settings = method_spec(text)
        make(method, **{**task.published(method)[1], **settings})
    assert set(task.trace or ()) <= {*TRACED, *(f"{judge} pick" for judge in task.judges)}
    assert set(task.probes or ()) <= set(probes)
    assert task.figures
    # All have one target.
    assert len({task.published(method_spec(text)[0])[0] for text in task.line_up}) == 1
    if "killed rank" in (task.trace or ()):
        assert "ranks" in task.probes


@pytest.mark.parametrize("name", [name for name in OURS if "digits" not in name])
def test_an_analysis_runs_and_draws(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "CHUNK", 64)
    for what, few in (("ROLLOUTS", 3), ("DRAWS", 3), ("SUMS", 3)):
        monkeypatch.setattr(probe, what, few)
    task = bench.tasks[name].make()
    flags = ["--steps", "20", "--seeds", "1", "--groups", "1", *(["--reference", "64"] if task.features else [])]
    assert viot_("bench", name, *flags, "--nfe", "160,320" if name == "fvd-theory" else "160", "--out", tmp_path / "a") == 0
    made = rows(tmp_path / "a")
    assert not [row["failed"] for row in made if "failed" in row]
    assert len(made) == len(task.line_up) * max(1, len(task.rewards)) * (2 if name == "fvd-theory" else 1)
    for figure in task.figures:
        assert analysis.lines(made, figure), figure.title
    words = check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert all(figure.title in words for figure in task.figures)
    if any(name not in ("ranks",) for name in task.probes or ()):
        assert "## At every selection" in text
    for column in task.trace or ():
        if (known := TRACED.get(column)) and known.column:
            assert f"| {known.title} " in text
    if name == "noise":
        assert text.count("noise σ = ") == len(task.rewards)
        assert "| modes of best " in text


def test_other_tasks_are_not_widened():
    task = bench.tasks["mixture"].make()
    assert task.trace is None
    assert task.probes is None
    assert task.figures == ()
    # Rows of before have neither, and are of the same bench.
    assert Reading().trace is Reading().probes is None
