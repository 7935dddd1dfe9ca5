"""`viot bench`: rows are made once and kept, tables are the means that they say they are, and mistakes are told."""

import json
import math
import os
import re
from functools import partial

import pytest
import torch
from helpers import quiet, rows, viot_
from masked import MarkovTokens
from test_report import check_page

import viot
from viot import bench, cli
from viot.bench import features, figures, measure, pool, reference, table
from viot.bench import run as runner
from viot.bench.columns import Mean, over_seeds
from viot.bench.measure import Reading
from viot.bench.reference import Against, Law, quadrature
from viot.bench.tasks import Preset
from viot.methods import VASR, make
from viot.metrics import frechet_distance, mmd, mode_mass, sliced_wasserstein
from viot.metrics.distances import unit_directions
from viot.metrics.text import distinct, ngram_kernel, vendi
from viot.models import models
from viot.models.gaussian import GaussianMixture
from viot.registry import Entry
from viot.rewards import Modes, Quadratic, rewards
from viot.rewards.digits import judge
from viot.sample import Run
from viot.spelling import method_spec

METHODS = "base,vasr,best-of-n(n=2)"
SMALL = ["--methods", METHODS, "--nfe", "40,80", "--seeds", "2"]


class Letters(MarkovTokens):
    """Strings of the chain, whose likelihood is known: log P is exact."""

    def nll(self, x0, group, draws, generator):
        return -self.joint[tuple(x0.T)].log()


def score(samples):
    return torch.tensor([float(text.count("c")) for text in samples])


def ends(samples):
    return torch.tensor([float(text.endswith("c")) for text in samples])


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.entries, "letters", Entry(Letters, "strings"))
    monkeypatch.setitem(rewards.entries, "cs", Entry(lambda: score, "c's"))
    monkeypatch.setitem(rewards.entries, "ends", Entry(lambda: ends, "a c at the end"))
    preset = Preset(
        model="letters", reward="cs", prompts=None, papers=("none",), particles=16, steps=4, lam=1.0, methods={"vasr": (1.0, {"schedule": "every"})},
        judges=("ends",), groups=2, characters=True,
    )  # fmt: skip
    monkeypatch.setitem(bench.tasks.entries, "toy", Entry(lambda: preset, "toy"))
    return preset


def without_times(row):
    return {k: v for k, v in row.items() if k != "seconds"}


# -- rows -----------------------------------------------------------------------------------------------------------------------------


def test_a_row_for_each_method_budget_and_seed(tmp_path, capsys):
    assert viot_("bench", "toy", *SMALL, "--out", tmp_path / "a") == 0
    out = capsys.readouterr().out
    # 12 runs of at most 2 groups of 40 or 80 rows.
    assert "toy: 3 methods × 2 budgets × 2 seeds, 12 rows; 1\u202f440 network rows to spend" in out
    found = rows(tmp_path / "a")
    assert {(r["method"], r["budget"], r["seed"]) for r in found.values()} == {
        (m, b, s) for m in METHODS.split(",") for b in (40, 80) for s in (0, 1)
    }
    assert len(found) == 12
    for row in found.values():
        assert row["viot"] == viot.__version__
        assert row["nfe"] == row["budget"]
        assert set(row["seconds"]) == {"total", "network", "decode", "reward", "selection", "reading"}
        assert row["config"]["method"]["name"] == method_spec(row["method"])[0]
        assert {"reward", "uniform", "pick", "nll", "nll pick", "ends", "dist-1", "vendi", "ess", "lineages", "log z"} <= set(
            row["metrics"]
        )
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"rows", "samples", "table.md", "report.html"}


@pytest.mark.parametrize("after", [0, 2, 5])
def test_what_was_stopped_goes_on(tmp_path, capsys, monkeypatch, runs, after):
    assert viot_("bench", "toy", *SMALL, "--out", tmp_path / "whole") == 0
    states, left = Run.states, [after]

    def stop(self, state=None):
        """Ctrl-C in the middle of a run, after so many whole ones."""
        for n, reached in enumerate(states(self, state)):
            if not left[0] and n == 2:
                raise KeyboardInterrupt
            yield reached
        left[0] -= 1

    monkeypatch.setattr(Run, "states", stop)
    assert viot_("bench", "toy", *SMALL, "--out", tmp_path / "b") == 130
    assert f"interrupted. The same command goes on from {tmp_path / 'b'}" in capsys.readouterr().err
    first = rows(tmp_path / "b")
    assert len(first) == after
    monkeypatch.setattr(Run, "states", states)
    # Half a file of a process that was killed while writing is no row.
    (tmp_path / "b" / "rows" / "vasr.80.1.json.part").write_text("{")
    runs.clear()
    assert viot_("bench", "toy", *SMALL, "--out", tmp_path / "b") == 0
    assert f"12 rows, {after} of them there already" in capsys.readouterr().out or after == 0
    assert len(runs) == 12 - after
    (tmp_path / "b" / "rows" / "vasr.80.1.json.part").unlink(missing_ok=True)
    found = rows(tmp_path / "b")
    assert all(found[name] == row for name, row in first.items()), "a row was made twice"
    assert {k: without_times(v) for k, v in found.items()} == {k: without_times(v) for k, v in rows(tmp_path / "whole").items()}
    runs.clear()
    assert viot_("bench", "toy", *SMALL, "--out", tmp_path / "b") == 0
    assert not runs


def test_a_bench_grows(tmp_path, runs):
    flags = ["bench", "toy", "--methods", "base", "--nfe", "40", "--out", tmp_path / "a"]
    assert viot_(*flags, "--seeds", "1") == 0
    assert viot_(*flags[:3], "base,vasr", *flags[4:], "--seeds", "1:3") == 0
    assert runs == ["base", "base", "vasr", "base", "vasr"]
    assert len(rows(tmp_path / "a")) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--steps", "5"], "steps: 4 there, 5 here"),
        (["--judge", "cs", "--reward", "ends"], "reward: 'cs' there, 'ends' here"),
        (["--judge", "count:a"], "reading.judges: ['ends'] there, ['count:a'] here"),
        (["--methods", "fkd"], None),
        (["--methods", "fkd", "--groups", "3"], "groups: 2 there, 3 here"),
    ],
)
def test_rows_of_another_bench_are_refused(tmp_path, capsys, runs, change, said):
    flags = ["bench", "toy", "--methods", "vasr", "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a"]
    assert viot_(*flags) == 0
    before = rows(tmp_path / "a")
    runs.clear()
    assert viot_(*flags, *change) == (0 if said is None else 2)
    err = capsys.readouterr().err
    if said is None:
        assert runs == ["fkd"]
        return
    assert "vasr.40.0.json belongs to another bench (" in err
    assert said in err
    assert "Give another --out" in err
    assert not runs
    assert rows(tmp_path / "a") == before


def test_a_changed_default_is_another_configuration(tmp_path, capsys, world):
    flags = ["bench", "toy", "--methods", "vasr", "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a"]
    assert viot_(*flags) == 0
    world.methods["vasr"] = (1.0, {"schedule": "every", "temperature": 2.0})
    assert viot_(*flags) == 2
    assert "method.temperature" in capsys.readouterr().err


def test_rows_of_another_version_are_kept_and_named(tmp_path, capsys):
    flags = ["bench", "toy", "--methods", "base", "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a"]
    assert viot_(*flags) == 0
    path = tmp_path / "a" / "rows" / "base.40.0.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "viot": "0.0.9"}))
    assert viot_(*flags, "--seeds", "2") == 0
    assert "were made by viot 0.0.9" in capsys.readouterr().err
    assert f"Made by viot 0.0.9, {viot.__version__}." in (tmp_path / "a" / "table.md").read_text(encoding="utf-8")


def test_two_spellings_do_not_share_a_file(tmp_path):
    methods = "best-of-n(n=2),best-of-n(n=2 )"
    assert viot_("bench", "toy", "--methods", methods, "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a") == 0
    assert len(rows(tmp_path / "a")) == 2


# -- what fails -----------------------------------------------------------------------------------------------------------------------


def test_a_method_that_cannot_leaves_a_row_that_says_so(tmp_path, capsys, runs):
    flags = ["bench", "toy", "--methods", "base,dps,svdd(m=30)", "--nfe", "40", "--seeds", "2", "--out", tmp_path / "a"]
    assert viot_(*flags) == 0
    captured = capsys.readouterr()
    found = rows(tmp_path / "a")
    assert sum("failed" in row for row in found.values()) == 4
    assert "follows the gradient of the reward, and there is none" in found["dps.40.1.json"]["failed"]
    assert "note: svdd(m=30) at 40 rows: the budget of 40 network rows per group is too small" in captured.err
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "| dps (failed) | – | –" in text
    assert text.count("**dps** failed: dps follows the gradient") == 1
    words = check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert "svdd(m=30) failed: the budget of 40" in words
    assert "to have them tried again" in captured.out
    # Kept like any other row.
    runs.clear()
    assert viot_(*flags) == 0
    assert not runs


def test_nothing_but_failures_is_a_failure(tmp_path):
    assert viot_("bench", "toy", "--methods", "dps", "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a") == 2
    assert "No method has an answer" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_a_reader_that_breaks_is_no_fault_of_the_method(tmp_path, capsys, monkeypatch):
    def broken(samples):
        raise ValueError("no such thing")

    monkeypatch.setitem(rewards.entries, "ends", Entry(lambda: broken, "broken"))
    assert viot_("bench", "toy", "--methods", "base", "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a") == 2
    assert "error: no such thing" in capsys.readouterr().err
    assert not rows(tmp_path / "a")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["toys"], "unknown task 'toys'. Did you mean 'toy'?"),
        (["toy", "--methods", "vasrr"], "Did you mean 'vasr'?"),
        (["toy", "--methods", "vasr(temprature=1)"], "Did you mean 'temperature'?"),
        (["toy", "--methods", "vasr,vasr"], "names 'vasr' twice"),
        (["toy", "--nfe", "320;640"], "--nfe takes different whole numbers > 0 between commas, for example 320,640"),
        (["toy", "--nfe", "40,40"], "different whole numbers"),
        (["toy", "--seeds", "1-3"], "--seeds takes a count or a range such as 3:6, not '1-3'"),
        (["toy", "--seeds", "3:3"], "--seeds 3:3 holds no seed"),
        (["toy", "--judge", "endz"], "Did you mean 'ends'?"),
        (["toy", "--lam", "ess:0.3"], "a bench has one λ for all budgets and seeds"),
        (["toy", "folder"], "'folder' is too many. Write --out folder"),
        (["report"], "viot bench report takes the folder of a bench"),
        (["report", "nowhere"], "nowhere holds no rows of a bench"),
    ],
)
def test_mistakes_are_told(capsys, runs, argv, said):
    assert viot_("bench", *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert not runs


def test_a_strange_file_among_the_rows(tmp_path, capsys):
    (tmp_path / "a" / "rows").mkdir(parents=True)
    for text in ("{", '{"method": "vasr"}', "[]"):
        (tmp_path / "a" / "rows" / "x.json").write_text(text)
        assert viot_("bench", "report", tmp_path / "a") == 2
        assert "x.json is not the row of a bench" in capsys.readouterr().err


# -- numbers --------------------------------------------------------------------------------------------------------------------------


def test_means_and_standard_errors_by_hand():
    mean = over_seeds([1.0, 2.0, 6.0, None, math.nan])
    assert (mean.value, mean.n) == (3.0, 3)
    # Squared deviations 4, 1 and 9 over 2 and over 3.
    assert mean.error == pytest.approx(math.sqrt(14 / 2 / 3))
    assert str(mean) == "3.0 ± 1.5"
    assert math.isnan(over_seeds([2.0]).error)
    assert str(over_seeds([2.0])) == "2"
    assert over_seeds([None, math.inf]) is None
    assert str(Mean(16.9886, 0.0018, 2)) == "16.99 ± 0.002"
    assert str(Mean(-2.6301, 0.031, 2)) == "−2.630 ± 0.031"
    assert str(Mean(1260.0, 12.0, 3)) == "1260 ± 12"
    assert str(Mean(1.0, 8e-17, 2)) == "1"


def written(method, seed, budget=40, **metrics):
    reading = {"judges": ["ends"], "characters": True, "draws": 8}
    config = {"model": {"name": "letters"}, "reward": "cs", "groups": 2, "steps": 4, "lam": 1.0, "reading": reading}
    row = {"viot": "1", "task": "toy", "method": method, "budget": budget, "seed": seed, "config": config, "nfe": budget, "reward_rows": 7}
    return {**row, "seconds": {"total": 0.5}, "metrics": metrics} if metrics else {**row, "failed": "it <could> not"}


def test_tables_hold_the_means_of_the_rows():
    made = [written("vasr", 0, reward=1.0, ends=0.5, nll=3.0), written("vasr", 1, reward=2.0, ends=None, nll=5.0)]
    made += [written("a|b", 0, reward=4.0, ends=0.25, nll=None), written("a|b", 1)]
    text = table.markdown(made)
    # Two rows at 1 and 2: mean 1.5, standard deviation √½, over √2.
    assert "| method | reward | NLL | ends | network rows | reward rows | seconds |" in text
    assert "| vasr | 1.50 ± 0.50 | 4.0 ± 1.0 | 0.500 | 40 | 7 | 0.500 |" in text
    assert "| a\\|b (failed 1 of 2) | 4 | – | 0.250 | 40 | 7 | 0.500 |" in text
    assert "- **a\\|b** failed: it <could> not" in text
    assert "nats per text under letters, an upper bound by 8 network calls each" in text
    words = check_page(table.page(made))
    assert "1.50 ± 0.50" in words
    assert "it <could> not" in words


def test_the_figure_is_reward_against_likelihood():
    made = [written("vasr", s, b, reward=b / 40 + s, nll=10.0 + s) for s in (0, 2) for b in (40, 80)]
    title, drawing = figures.figure(made)
    assert title == "Reward against likelihood"
    assert "<title>vasr: 2 at 11</title>" in drawing
    assert "<title>vasr: 3 at 11</title>" in drawing
    unbounded = [written("vasr", 0, b, reward=1.0 * b) for b in (40, 80)]
    title, drawing = figures.figure(unbounded)
    assert title == "Reward over budget"
    assert "<title>vasr: 80 at 80</title>" in drawing


def test_a_row_says_what_the_population_is(tmp_path):
    assert viot_("bench", "toy", "--methods", "vasr,dts", "--nfe", "80", "--seeds", "1:2", "--out", tmp_path / "a") == 0
    row = rows(tmp_path / "a")["vasr.80.1.json"]
    model = Letters()
    with quiet():
        p = viot.sample(model, score, VASR(schedule="every"), particles=20, groups=2, steps=4, seed=1, progress=False)
    found, w = row["metrics"], p.weights
    assert found["reward"] == pytest.approx(p.mean().mean().item())
    assert found["uniform"] == pytest.approx(p.rewards.mean().item())
    assert found["reward"] != pytest.approx(found["uniform"], abs=1e-6), "even weights test nothing"
    assert found["pick"] == p.rewards.amax(-1).mean().item()
    nll = -model.joint[tuple(p.x0.flatten(0, 1).T)].log().view(2, 20)
    assert found["nll"] == pytest.approx((w * nll).sum(-1).mean().item())
    at = p.rewards.argsort(dim=-1, descending=True, stable=True)[:, :1]
    assert found["nll pick"] == pytest.approx(nll.gather(1, at).mean().item())
    judged = torch.tensor([[float(t.endswith("c")) for t in group] for group in p.samples], dtype=torch.float64)
    assert found["ends"] == pytest.approx((w * judged).sum(-1).mean().item())
    kernels = [ngram_kernel(group, 3, characters=True) for group in p.samples]
    assert found["vendi"] == pytest.approx(sum(vendi(k, w[i]) for i, k in enumerate(kernels)) / 2)
    assert found["ess"] == pytest.approx(p.ess.mean().item())
    assert found["log z"] == pytest.approx(p.log_z.mean().item())
    assert found["returned"] == 20
    tree = rows(tmp_path / "a")["dts.80.1.json"]["metrics"]
    assert tree["log z"] is None
    assert 1 <= tree["ess"] <= 20


def test_equally_weighted_texts_count_once_each():
    with quiet():
        p = viot.sample(Letters(length=4), score, "base", particles=12, groups=1, steps=4, progress=False)
    found = Reading(characters=True)(p, Letters(length=4), {})
    for n in (1, 2, 3):
        assert found[f"dist-{n}"] == pytest.approx(distinct(p.samples[0], n, characters=True))
    assert found["different"] == len(set(p.samples[0])) / 12
    words = Reading()(p, Letters(length=4), {})
    assert words["dist-1"] == pytest.approx(len(set(p.samples[0])) / 12), "a string is one word"


def test_pictures_have_no_texts_to_compare(tmp_path, monkeypatch):
    plain = Preset(model="gaussian", reward="brightness", prompts=None, papers=("none",), particles=8, steps=4, lam=1.0, methods={})
    monkeypatch.setitem(bench.tasks.entries, "points", Entry(lambda: plain, "points"))
    assert viot_("bench", "points", "--methods", "base,vasr", "--nfe", "40", "--seeds", "2", "--out", tmp_path / "a") == 0
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "dist-1" not in text
    assert "NLL" not in text
    assert "Reward over budget" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    before = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    (tmp_path / "a" / "report.html").unlink()
    assert viot_("bench", "report", tmp_path / "a") == 0
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8") == before


# -- the tasks of the package ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "text-reviews"])
def test_every_method_of_the_line_up_runs_on_tokens(name, tmp_path):
    """On the small world: what does not go with tokens would leave a row that failed."""
    task = bench.tasks[name].make()
    assert {task.model} <= set(models)
    assert {n.partition(":")[0] for n in (task.reward, *task.judges)} <= set(rewards)
    assert task.reward not in task.judges
    for text in task.line_up:
        method, settings = method_spec(text)
        make(method, **{**task.published(method)[1], **settings})
    flags = ["--model", "letters", "--reward", "cs", "--steps", "4", "--nfe", "60", "--seeds", "1", "--groups", "1"]
    assert viot_("bench", name, *flags, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    assert not [row["failed"] for row in found.values() if "failed" in row]
    assert len(found) == len(task.line_up)
    # One target for all.
    assert len({row["config"]["lam"] for row in found.values()}) == 1


# -- points and pictures --------------------------------------------------------------------------------------------------------------


class Blobs(GaussianMixture):
    """Pictures of a digit's size from points of the plane: what differentiates and what reads them is what does so for digits."""

    def __init__(self):
        super().__init__([[-1.0, 0.0], [1.0, 0.5]], 0.2)

    def decode(self, x0, group):
        return torch.sigmoid(3 * x0[:, :1] * SHAPES[0] + 3 * x0[:, 1:] * SHAPES[1]).float().view(-1, 1, 28, 28)


SHAPES = torch.nn.functional.interpolate(torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)), 28).view(2, 1, 784)


@pytest.fixture
def dots(monkeypatch):
    """A task of points with two modes; its reference rests on a few draws."""
    monkeypatch.setattr(reference, "CHUNK", 64)
    monkeypatch.setitem(models.entries, "dots", Entry(lambda: GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], 0.09), "two modes"))
    monkeypatch.setitem(rewards.entries, "near", Entry(lambda: Quadratic([2.0, 0.0], 0.3), "the right one"))
    preset = Preset(
        model="dots", reward="near", prompts=None, papers=("none",), particles=10, steps=8, lam=1.0, methods={}, groups=2,
        features="points", reference=192, bandwidth=0.7, radius=0.9,
    )  # fmt: skip
    monkeypatch.setitem(bench.tasks.entries, "dots", Entry(lambda: preset, "dots"))
    return ["bench", "dots", "--methods", "base,vasr", "--nfe", "80", "--seeds", "1"]


def test_numbers_of_a_group_by_hand():
    # A target of ¼ at the origin and ¾ at (4, 0), two particles on its points, weighing ½ each, and ¼ and ¾ when all are alike … of three.
    two = torch.tensor([[0.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    law = Law(two, torch.tensor([0.25, 0.75], dtype=torch.float64), 0.0, bandwidth=1.0)
    base = Law(two, torch.tensor([0.5, 0.5], dtype=torch.float64), 0.0, bandwidth=1.0)
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
    w, sound = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    against = Against(law, base, None, two, 0.5)
    found = measure._group(x, w, sound, against, False, torch.Generator().manual_seed(0))
    apart = 1 - math.exp(-8)
    assert found["mmd"] == pytest.approx(0.25 * math.sqrt(2 * apart))
    assert found["mmd uniform"] == pytest.approx(0.75 * math.sqrt(2 * apart))
    assert found["mmd base"] == pytest.approx(0, abs=1e-7)
    # A quarter of the mass goes by 4 along the first axis, by 4 |cos| in a projection.
    along = unit_directions(reference.DIRECTIONS, 2)[:, 0].square().mean().item()
    assert found["swd"] == pytest.approx(math.sqrt(0.25 * 16 * along))
    assert found["swd uniform"] == pytest.approx(math.sqrt(0.75 * 16 * along))
    assert found["modes"] == pytest.approx(0.25)
    assert found["missed"] == 0
    assert found["euclidean"] == pytest.approx(4)
    k = math.exp(-8)
    assert found["vendi"] == pytest.approx(math.exp(-sum((1 + s * k) / 2 * math.log((1 + s * k) / 2) for s in (1, -1))))
    assert "precision" not in found, "two points have no third neighbours"
    lost = measure._group(x, torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64), sound, against, False, torch.Generator())
    # Shares ½, 0 and ½ outside against ¼, ¾ and 0.
    assert lost["modes"] == pytest.approx(0.75)
    assert lost["missed"] == 1


def test_quadrature_is_the_tilted_law():
    law = GaussianMixture([[-1.0, 0.5], [1.5, 0.0], [0.0, 2.0]], [0.09, 0.25, 0.16], [0.5, 0.3, 0.2]).data_law()
    reward = Quadratic([0.7, -0.2], 0.8)
    for lam in (0.5, 2.0):
        exact, log_z = law.tilt(reward.center, reward.precision, lam)
        found = quadrature(law, reward, lam, 1.0)
        assert found.log_z == pytest.approx(log_z, abs=1e-8)
        assert (found.weights @ found.points).tolist() == pytest.approx(exact.mean.tolist(), abs=1e-8)
        assert abs(quadrature(law, reward, 1.1 * lam, 1.0).log_z - log_z) > 1e-3


def test_the_mixture_of_the_paper_is_known():
    # At λ = 1 the product of two mixtures: modes of mass ∝ exp(1.5 i), and Z = ⅛ Σ_ij w_j N(μ_i; μ_j, 2σ²).
    model, w = viot.load("mixture"), [math.exp(1.5 * i) for i in range(1, 9)]
    found = quadrature(model.data_law(), Modes.eight(), 1.0, 1.0)
    assert found.log_z == pytest.approx(math.log(sum(w) / 8 / (4 * math.pi * 0.09)), abs=1e-6)
    shares, outside = mode_mass(found.points, model.law.means, 0.9, found.weights)
    # |x − μ| is Rayleigh with σ/√2.
    assert outside == pytest.approx(math.exp(-(0.9**2) / 0.09), rel=0.1)
    assert shares.tolist() == pytest.approx([v / sum(w) * (1 - outside) for v in w], rel=1e-3)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = [[v / (2 * math.pi * 0.09) * math.exp(-(math.dist(p, m) ** 2) / 0.18) for v, m in zip(w, model.law.means.tolist(), strict=True)] for p in x.tolist()]  # fmt: skip
    written = [math.log(sum(densities)) for densities in each]
    assert Modes.eight()(x).tolist() == pytest.approx(written)


def test_the_board_is_dark_where_it_should_be():
    law = viot.load("checkerboard").data_law()
    x = law.means[torch.multinomial(law.weights, 4000, replacement=True, generator=torch.Generator().manual_seed(0))]
    x = x + torch.randn(4000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 3
    dark = ((x + 4) / 2).floor().sum(1) % 2 == 0
    assert dark.double().mean() > 0.7
    assert law.mean.tolist() == pytest.approx([0, 0], abs=1e-9)
    middles = torch.cartesian_prod(*[torch.arange(4, dtype=torch.float64) * 2 - 3] * 2)
    density = law.log_density(middles).exp()
    light = (torch.cartesian_prod(torch.arange(4), torch.arange(4)).sum(1) % 2).bool()
    assert density[~light].min() > 10 * density[light].max()


def test_a_row_holds_its_distances(tmp_path, dots):
    assert viot_(*dots, "--out", tmp_path / "a") == 0
    row = rows(tmp_path / "a")["vasr.80.0.json"]
    found, reward = row["metrics"], Quadratic([2.0, 0.0], 0.3)
    model = models.entries["dots"].make()
    with quiet():
        p = viot.sample(model, reward, VASR(), particles=10, groups=2, steps=8, seed=0, progress=False)
        draws = torch.cat([viot.sample(model, reward, "base", particles=64, groups=(i,), steps=8, seed=-1).x0[0] for i in range(3)])
    log_w = reward(draws)
    v = log_w.softmax(0)
    assert found["mmd"] == pytest.approx(sum(mmd(p.x0[g], draws, p.weights[g], v, bandwidth=0.7) for g in (0, 1)) / 2, rel=1e-6)
    assert found["mmd uniform"] == pytest.approx(sum(mmd(p.x0[g], draws, None, v, bandwidth=0.7) for g in (0, 1)) / 2, rel=1e-6)
    assert found["mmd base"] == pytest.approx(sum(mmd(p.x0[g], draws, p.weights[g], bandwidth=0.7) for g in (0, 1)) / 2, rel=1e-6)
    assert len({round(found[name], 4) for name in ("mmd", "mmd uniform", "mmd base")}) == 3, "weights that test nothing"
    theta = unit_directions(reference.DIRECTIONS, 2)
    swd = sum(sliced_wasserstein(p.x0[g], draws, p.weights[g], v, directions=theta) for g in (0, 1)) / 2
    assert found["swd"] == pytest.approx(swd, abs=2e-2)
    log_z = log_w.logsumexp(0) - math.log(192)
    assert found["log z error"] == pytest.approx((p.log_z - log_z).abs().mean().item(), abs=1e-9)
    data = quadrature(model.data_law(), reward, 1.0, 0.7)
    target = mode_mass(data.points, model.law.means, 0.9, data.weights)
    here = [mode_mass(p.x0[g], model.law.means, 0.9, p.weights[g]) for g in (0, 1)]
    gaps = [(float((h - target[0]).abs().sum()) + abs(out - target[1])) / 2 for h, out in here]
    assert found["modes"] == pytest.approx(sum(gaps) / 2)
    assert 0 <= found["recall"] <= 1
    assert 0 < found["mmd exact"] < 1
    assert found["mmd data"] > 0
    assert "frechet" not in found
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "192 base draws weighed by exp(λ r); a Gaussian kernel in the points themselves" in text
    words = check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert "Reward against distance" in words


def test_a_steered_answer_is_nearer_to_its_target_than_a_plain_one(tmp_path, dots):
    """And the reference is that of the reward: toward the other side it is the other way round."""
    assert viot_(*dots[:5], "320", *dots[6:], "--out", tmp_path / "a") == 0
    right = {row["method"]: row["metrics"] for row in rows(tmp_path / "a").values()}
    assert right["vasr"]["mmd"] < 0.7 * right["base"]["mmd"]
    assert right["vasr"]["modes"] < right["base"]["modes"]
    rewards.entries["near"] = Entry(lambda: Quadratic([-2.0, 0.0], 0.3), "the left one")
    samples = torch.cat([reference._read(path, {}) for path in sorted((tmp_path / "a" / "reference").iterdir())])
    against = Reading(features="points", bandwidth=0.7, radius=0.9).references(samples, models.entries["dots"].make()).against("near", 1.0)
    with quiet():
        p = viot.sample(models.entries["dots"].make(), Quadratic([2.0, 0.0], 0.3), VASR(), particles=40, steps=8, progress=False)
    assert against.chain.mmd(p.x0[0], p.weights[0]) > 2 * right["vasr"]["mmd"]


def test_the_reference_is_drawn_once_and_goes_on(tmp_path, capsys, dots, runs):
    flags = [*dots, "--out", tmp_path / "a"]
    assert viot_(*flags) == 0
    assert runs == ["base"] * 3 + ["base", "vasr"]
    files = sorted((tmp_path / "a" / "reference").iterdir())
    assert [f.name for f in files] == ["000.safetensors", "001.safetensors", "002.safetensors"]
    kept, before = [f.read_bytes() for f in files], rows(tmp_path / "a")
    # More seeds need no more draws; and a file that is lost, as of a process that was killed, is made anew alone.
    runs.clear()
    files[1].unlink()
    (tmp_path / "a" / "rows" / "vasr.80.0.json").unlink()
    assert viot_(*flags) == 0
    assert runs == ["base", "vasr"]
    assert [f.read_bytes() for f in files] == kept
    assert {k: without_times(v) for k, v in rows(tmp_path / "a").items()} == {k: without_times(v) for k, v in before.items()}
    # Nothing to do needs no reference.
    runs.clear()
    assert viot_(*flags) == 0
    assert not runs
    # Of another chain it is refused, before anything is run; so is another number of draws, by the rows.
    assert viot_(*flags, "--reference", "64") == 2
    assert "reading.reference: 192 there, 64 here" in capsys.readouterr().err
    for path in (tmp_path / "a" / "rows").iterdir():
        path.unlink()
    assert viot_(*flags, "--steps", "10") == 2
    err = capsys.readouterr().err
    assert "000.safetensors holds base draws of another bench (steps: 8 there, 10 here)" in err
    assert not runs
    assert [f.read_bytes() for f in files] == kept
    # Fewer draws are the first ones of more.
    task = runner.Bench.asked(cli.parser().parse_args(dots)).plain
    few = reference.draw(tmp_path / "b", task, models.entries["dots"].make(), 100, {})
    more = reference.draw(tmp_path / "b", task, models.entries["dots"].make(), 150, {})
    assert len(few) == 100
    assert torch.equal(few, more[:100])


def test_a_bench_that_is_stopped_while_it_draws(tmp_path, monkeypatch, dots, runs):
    finish = Run.finish

    def stop(self, **k):
        if len(runs) == 2:
            raise KeyboardInterrupt
        return finish(self, **k)

    monkeypatch.setattr(Run, "finish", stop)
    assert viot_(*dots, "--out", tmp_path / "a") == 130
    assert len(list((tmp_path / "a" / "reference").iterdir())) == 2
    monkeypatch.setattr(Run, "finish", finish)
    runs.clear()
    assert viot_(*dots, "--out", tmp_path / "a") == 0
    assert runs == ["base", "base", "vasr"]


def test_without_a_reference(tmp_path, capsys, dots):
    assert viot_(*dots, "--reference", "0", "--out", tmp_path / "a") == 0
    row = rows(tmp_path / "a")["vasr.80.0.json"]["metrics"]
    assert "mmd" not in row
    assert row["euclidean"] > 0
    assert not (tmp_path / "a" / "reference").exists()
    # Another model has no features that are known to fit.
    assert viot_(*dots, "--model", "gaussian", "--reference", "64", "--out", tmp_path / "b") == 2
    assert "no features in which answers could be compared" in capsys.readouterr().err
    assert viot_(*dots, "--model", "gaussian", "--out", tmp_path / "b") == 0


def test_strengths_are_swept(tmp_path, capsys, dots, runs):
    assert viot_(*dots, "--out", tmp_path / "a") == 0
    runs.clear()
    assert viot_(*dots, "--lam", "0.5,1,2", "--out", tmp_path / "a") == 0
    # λ = 1 is there, under another name.
    assert runs == ["base", "vasr"] * 2
    assert sorted(rows(tmp_path / "a")) == sorted(
        ["base.80.0.json", "vasr.80.0.json", *[f"{m}.80.0.lam{lam}.json" for m in ("base", "vasr") for lam in ("0.5", "2")]]
    )
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "λ = 0.5, 1 and 2, 8 steps" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## 80 network rows per group, λ = {lam}" for lam in ("0.5", "1", "2")
    ]
    made = list(rows(tmp_path / "a").values())
    lines = {line.label: line for line in figures.curves(made, lambda row: row["config"]["lam"], lambda row: row["metrics"]["reward"])}
    assert lines["vasr"].x == [0.5, 1.0, 2.0]
    assert lines["vasr"].y == sorted(lines["vasr"].y)
    # One target, one number: plain draws do not follow λ, and yet are further from a stronger one.
    base = {row["config"]["lam"]: row["metrics"] for row in made if row["method"] == "base"}
    assert base[0.5]["uniform"] == base[2.0]["uniform"]
    assert base[0.5]["mmd"] < base[1.0]["mmd"] < base[2.0]["mmd"]
    assert viot_(*dots, "--lam", "1,1", "--out", tmp_path / "a") == 2
    assert "--lam takes different finite numbers between commas" in capsys.readouterr().err
    assert viot_(*dots, "--lam", "1,kl:2", "--out", tmp_path / "a") == 2
    assert "a bench has one λ for all budgets and seeds, not --lam kl:2" in capsys.readouterr().err


def test_a_row_for_each_reward(tmp_path, monkeypatch, runs):
    preset = Preset(
        model="letters", reward="cs", prompts=None, papers=("none",), particles=8, steps=4, lam=1.0, methods={}, groups=1,
        rewards=("cs", "ends"), characters=True,
    )  # fmt: skip
    monkeypatch.setitem(bench.tasks.entries, "classes", Entry(lambda: preset, "classes"))
    flags = ["bench", "classes", "--methods", "base", "--nfe", "40", "--seeds", "1", "--out", tmp_path / "a"]
    assert viot_(*flags, "--reward", "ends") == 0
    assert viot_(*flags) == 0
    assert runs == ["base", "base"]
    found = rows(tmp_path / "a")
    assert {name: row["config"]["reward"] for name, row in found.items()} == {"base.40.0.cs.json": "cs", "base.40.0.ends.json": "ends"}
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "letters toward cs and ends, λ = 1, 4 steps, 1 group per seed; means over 2 rewards and 1 seed" in text
    mean = over_seeds([row["metrics"]["reward"] for row in found.values()])
    assert f"| base | {mean} |" in text


def test_the_better_of_two_draws_is_named(tmp_path):
    made = [written("vasr", s, b, reward=1.0, mmd=0.2 + s / 10, **{"mmd uniform": 0.25}) for s in (0, 1) for b in (40, 80)]
    for row in made:
        row["config"]["reading"] |= {"features": "points", "reference": 1000}
    text = table.markdown(made)
    assert "| method | reward | MMD | MMD, uniform | MMD, best of the two |" in text
    # 0.2 and 0.3 against 0.25 each.
    assert "| vasr | 1 | 0.250 ± 0.050 | 0.250 | 0.225 ± 0.025 |" in text
    title, drawing = figures.figure(made)
    assert title == "Reward against distance"
    assert "<title>vasr: 1 at 0.250</title>" in drawing
    assert [title for title, _ in figures.costs(made)] == ["MMD to the target over budget", "MMD to the target over wall clock"]
    assert "<title>vasr: 0.250 at 80</title>" in figures.costs(made)[0][1]
    assert not figures.costs(made[:1])
    # Thirteen curves are told apart.
    many = [written(f"m{i:02}", 0, b, reward=float(i), mmd=0.5) for i in range(13) for b in (40, 80)]
    drawn = re.findall(
        r'<polyline class="line (s\d)" points="[^"]*"( stroke-dasharray="[^"]*")?/>', figures.costs(many)[0][1].split("</ul>")[1]
    )
    assert len(drawn) == len(set(drawn)) == 13


def test_two_processes_make_the_same_rows_as_one(tmp_path):
    flags = ["bench", "mixture", "--methods", "base,vasr,dts", "--nfe", "40", "--steps", "4", "--groups", "2", "--seeds", "2"]
    assert viot_(*flags, "--reference", "512", "--out", tmp_path / "a") == 0
    assert viot_(*flags, "--reference", "512", "--jobs", "2", "--out", tmp_path / "b") == 0
    one, two = ({k: without_times(v) for k, v in rows(tmp_path / name).items()} for name in "ab")
    assert len(one) == 6
    assert one == two


def _dies(line, args):
    os._exit(3)


def test_a_process_that_is_killed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pool, "_work", _dies)
    flags = ["bench", "mixture", "--methods", "base", "--nfe", "40", "--steps", "4", "--groups", "1", "--reference", "0", "--seeds", "2"]
    assert viot_(*flags, "--jobs", "2", "--out", tmp_path / "a") == 2
    assert "a process of the bench ended with exit code 3" in capsys.readouterr().err
    assert viot_(*flags, "--jobs", "0", "--out", tmp_path / "a") == 2
    assert "--jobs takes a number of processes ≥ 1, not 0" in capsys.readouterr().err
    assert not rows(tmp_path / "a")


@pytest.mark.parametrize("name", ["mixture", "checkerboard", "mnist", "mnist-even-odd"])
def test_every_method_runs_on_points_and_pictures(name, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "CHUNK", 16)
    task = bench.tasks[name].make()
    assert set(task.rewards) <= {"digit:" + str(c) for c in range(10)} | {"digits:even", "digits:odd"}
    assert {lam for lam, _ in task.methods.values()} == {1.0}
    if name == "mnist-even-odd":
        return
    monkeypatch.setitem(models.entries, "digits", Entry(Blobs, "pictures"))
    small = ["--steps", "6", "--nfe", "36", "--seeds", "1", "--groups", "2", "--reference", "16"]
    small += ["--reward", "digit:7"] if name == "mnist" else []
    assert viot_("bench", name, *small, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    assert not [row["failed"] for row in found.values() if "failed" in row]
    assert len(found) == len(task.methods)
    for row in found.values():
        assert row["metrics"]["mmd"] > 0
        assert ("frechet" in row["metrics"]) == ("judge" in row["metrics"]) == ("cosine" in row["metrics"]) == (name == "mnist")
        assert ("modes" in row["metrics"]) == (name == "mixture")


def test_pictures_are_read_by_a_judge(tmp_path, monkeypatch):
    """In its features all groups together are the set that Fréchet's distance and the share are of."""
    monkeypatch.setattr(reference, "CHUNK", 16)
    monkeypatch.setitem(models.entries, "digits", Entry(Blobs, "pictures"))
    flags = ["--steps", "6", "--nfe", "48", "--seeds", "1", "--groups", "2", "--reference", "32", "--reward", "digits:2,3,8"]
    assert viot_("bench", "mnist", "--methods", "importance", *flags, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")["importance.48.0.digits-2-3-8.json"]["metrics"]
    with quiet():
        p = viot.sample(Blobs(), "digits:2,3,8", "importance", particles=8, groups=2, steps=6, progress=False)
        draws = [viot.sample(Blobs(), "digits:2,3,8", "base", particles=16, groups=(i,), steps=6, seed=-1) for i in (0, 1)]
    of, read = partial(features.read, "digits-judge"), judge()
    x, y = of(p.samples.flatten(0, 1)), torch.cat([of(d.samples[0]) for d in draws])
    assert x.shape == (16, 96)
    v = torch.cat([d.rewards[0] for d in draws]).softmax(0)
    assert found["frechet"] == pytest.approx(frechet_distance(x, y, p.weights.flatten(), v), rel=1e-6)
    assert found["frechet uniform"] == pytest.approx(frechet_distance(x, y, None, v), rel=1e-6)
    assert found["frechet"] != pytest.approx(found["frechet uniform"], rel=1e-2), "weights that test nothing"
    seen = torch.isin(read(p.samples.flatten(0, 1)).argmax(-1), torch.tensor([2, 3, 8])).double().view(2, 8)
    assert found["judge"] == pytest.approx(p.mean(seen).mean().item())
    unit = torch.nn.functional.normalize(x.view(2, 8, 96), dim=-1)
    w = p.weights
    gaps = [float(w[g] @ (1 - unit[g] @ unit[g].T) @ w[g] / (1 - w[g] @ w[g])) for g in (0, 1)]
    assert found["cosine"] == pytest.approx(sum(gaps) / 2, rel=1e-6)
