"""`viot bench`: rows are made once and kept, tables are the means that they say they are, and mistakes are told."""

import json
import math

import pytest
import torch
from helpers import quiet
from masked import MarkovTokens
from test_report import check_page

import viot
from viot import bench, cli
from viot.bench import table
from viot.bench.measure import Reading
from viot.bench.table import Mean, over_seeds
from viot.bench.tasks import Preset
from viot.methods import VASR, make
from viot.metrics.text import distinct, ngram_kernel, vendi
from viot.models import models
from viot.registry import Entry
from viot.rewards import rewards
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


@pytest.fixture
def runs(monkeypatch):
    """The methods that were run, in order."""
    made, finish = [], Run.finish
    monkeypatch.setattr(Run, "finish", lambda self, **k: (made.append(self.config["method"]["name"]), finish(self, **k))[1])
    return made


def viot_(*argv):
    return cli.main([str(a) for a in argv])


def rows(folder):
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rows").iterdir())}


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
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"rows", "table.md", "report.html"}


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
        (["--lam", "2"], "lam: 1.0 there, 2.0 here"),
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
    title, drawing = table.figure(made)
    assert title == "Reward against likelihood"
    assert "<title>vasr: 2 at 11</title>" in drawing
    assert "<title>vasr: 3 at 11</title>" in drawing
    unbounded = [written("vasr", 0, b, reward=1.0 * b) for b in (40, 80)]
    title, drawing = table.figure(unbounded)
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
