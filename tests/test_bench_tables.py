"""What tables, figures and sheets of a bench and of a comparison promise, and that a bench that is killed loses nothing."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import quiet, viot_
from masked import MarkovTokens
from PIL import Image
from test_report import check_page

import viot
from viot import bench, cli
from viot.bench import compared, desk, figures, forecast, published_numbers, reference, sections, table
from viot.bench import run as runner
from viot.bench.published_numbers import Numbers
from viot.bench.samples import SIDE, Kept
from viot.bench.tasks import Preset
from viot.metrics import mmd, precision_recall
from viot.metrics.distances import median_distance
from viot.models import models
from viot.models.gaussian import GaussianMixture
from viot.population import Population
from viot.registry import Entry
from viot.rewards import Quadratic, rewards


class Letters(MarkovTokens):
    """Strings of the chain, whose likelihood is known: log P is exact."""

    def nll(self, x0, group, draws, generator):
        return -self.joint[tuple(x0.T)].log()


class Pictures(GaussianMixture):
    """Points of the plane as grey pictures of 4 × 4."""

    def decode(self, x0, group):
        return torch.sigmoid(x0).float().repeat_interleave(8, 1).view(-1, 1, 4, 4)


class Two(GaussianMixture):
    """Two prompts, so that groups belong to one or to the other."""

    prompts = ("left", "right")


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "CHUNK", 64)
    dots = ([[-2.0, 0.0], [2.0, 0.0]], 0.09)
    for name, make in (
        ("dots", lambda: GaussianMixture(*dots)), ("two", lambda: Two(*dots)), ("grey", lambda: Pictures(*dots)), ("letters", Letters)
    ):  # fmt: skip
        monkeypatch.setitem(models.entries, name, Entry(make, name))
    monkeypatch.setitem(rewards.entries, "near", Entry(lambda: Quadratic([2.0, 0.0], 0.3), "the right one"))
    monkeypatch.setitem(rewards.entries, "bright", Entry(lambda: lambda samples: samples.flatten(1).double().mean(1), "bright ones"))
    monkeypatch.setitem(rewards.entries, "cs", Entry(lambda: lambda texts: torch.tensor([float(t.count("c")) for t in texts]), "c's"))
    dotted = Preset(
        model="dots", reward="near", prompts=None, papers=("none",), particles=10, steps=8, lam=1.0, methods={}, groups=2,
        features="points", reference=192, bandwidth=0.7, radius=0.9,
    )  # fmt: skip
    grey = Preset(
        model="grey", reward="bright", prompts=None, papers=("none",), particles=8, steps=4, lam=1.0, methods={}, groups=2,
        features="pixels", reference=64,
    )  # fmt: skip
    texts = Preset(model="letters", reward="cs", prompts=None, papers=("none",), particles=8, steps=4, lam=1.0, methods={}, groups=1)
    for name, preset in (("dots", dotted), ("grey", grey), ("texts", texts)):
        monkeypatch.setitem(bench.tasks.entries, name, Entry(lambda preset=preset: preset, name))


def rows(folder):
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rows").iterdir())}


def without_times(row):
    return {k: v for k, v in row.items() if k != "seconds"}


DOTS = ["bench", "dots", "--methods", "base,vasr", "--nfe", "80", "--seeds", "1"]


# -- how far it went ------------------------------------------------------------------------------------------------------------------


COMPARE = ["compare", "--model", "dots", "--reward", "near", "--steps", 8, "--budget", 160]


def compared_(folder):
    saved = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    return saved["task"], {row["method"]: row for row in saved["rows"]}


def test_compare_says_how_far_each_method_went(tmp_path, capsys):
    assert viot_(*COMPARE, "--methods", "vasr,base", "--groups", 3, "--out", tmp_path / "a") == 0
    task, found = compared_(tmp_path / "a")
    steered, plain = (Population.load(tmp_path / "a" / name) for name in ("vasr", "base"))
    # The base run's draws of the other groups: independent of a group's own noise, at no cost.
    others = [torch.cat([plain.x0[j] for j in range(3) if j != g]) for g in range(3)]
    assert task["base"]["features"] == "points"
    assert (task["base"]["draws"], task["base"]["nfe"]) == (40, 0)
    for name, p in (("vasr", steered), ("base", plain)):
        assert found[name]["mmd_base"] == pytest.approx(sum(mmd(p.x0[g], others[g], p.weights[g], bandwidth=0.7) for g in range(3)) / 3)
        inside = sum(precision_recall(p.x0[g], others[g], 3, weights_x=p.weights[g])[0] for g in range(3)) / 3
        assert found[name]["precision_base"] == pytest.approx(inside)
    assert found["vasr"]["mmd_base"] > 2 * found["base"]["mmd_base"]
    assert found["base"]["mmd_base"] < 2 * task["base"]["floor"]
    assert "MMD to base  precision, base" in capsys.readouterr().out
    words = check_page((tmp_path / "a" / "compare.html").read_text(encoding="utf-8").replace("report.html", "data:image/").replace("vasr/data", "data").replace("base/data", "data"))  # fmt: skip
    assert "Base: the 40 draws of the base run in other groups, in the points themselves" in words
    assert "near against MMD to the plain model" in words


def test_base_draws_are_made_where_there_are_none(tmp_path):
    assert viot_(*COMPARE, "--methods", "vasr", "--out", tmp_path / "a") == 0
    task, found = compared_(tmp_path / "a")
    # As many as particles, but 32 at least.
    assert (task["base"]["draws"], task["base"]["nfe"]) == (32, 32 * 8)
    with quiet():
        draws = viot.sample(
            models.entries["dots"].make(), Quadratic([2.0, 0.0], 0.3), "base", particles=32, steps=8, seed=-1, progress=False
        )
    p = Population.load(tmp_path / "a" / "vasr")
    assert found["vasr"]["mmd_base"] == pytest.approx(mmd(p.x0[0], draws.x0[0], p.weights[0], bandwidth=0.7))
    assert found["vasr"]["nfe"] == 160, "counted apart"
    assert "32 draws of the plain model for each group, 256 network rows, counted apart" in task["base"]["says"].replace("\u202f", "")
    assert viot_(*COMPARE, "--methods", "vasr,base", "--reference", 50, "--out", tmp_path / "b") == 0
    task, found = compared_(tmp_path / "b")
    assert (task["base"]["draws"], task["base"]["nfe"]) == (50, 400)
    assert found["base"]["mmd_base"] > 0
    assert viot_(*COMPARE, "--methods", "vasr", "--reference", 0, "--out", tmp_path / "c") == 0
    task, found = compared_(tmp_path / "c")
    assert "base" not in task
    assert found["vasr"]["mmd_base"] is None


def test_the_base_run_is_not_held_against_itself(tmp_path):
    assert viot_(*COMPARE[:-1], 320, "--methods", "vasr,base", "--out", tmp_path / "a") == 0
    task, found = compared_(tmp_path / "a")
    assert (task["base"]["draws"], task["base"]["nfe"]) == (40, 0)
    assert "from the same seed" in task["base"]["says"]
    assert found["base"]["mmd_base"] is found["base"]["precision_base"] is None
    assert found["vasr"]["mmd_base"] > 0


def test_prompts_have_base_draws_of_their_own():
    how = compared.reading(cli.commands.Task(model="two", reward="near"), None, None, None)
    with quiet():
        p = viot.sample(
            Two([[-2.0, 0.0], [2.0, 0.0]], 0.09), Quadratic([2.0, 0.0], 0.3), "base", particles=20, groups=4, steps=4, progress=False
        )
    held = compared.held(
        how, cli.commands.Task(model="two", reward="near", method="base"), Two([[-2.0, 0.0], [2.0, 0.0]], 0.09), p, [0, 1, 2, 3], 20
    )
    assert torch.equal(held.against.of(1).base.points, torch.cat([p.x0[1], p.x0[3]]).double())
    assert torch.equal(held.against.of(2).base.points, torch.cat([p.x0[0], p.x0[2]]).double())
    assert not held.others


def test_the_floor_is_where_draws_of_the_model_are():
    stream = torch.Generator().manual_seed(0)
    draws = torch.randn(101, 320, 2, generator=stream, dtype=torch.float64)
    h = median_distance(draws[0])
    held = compared._held({0: draws[0, :300]}, "points", h, 0, True)
    squares = [mmd(x[:20], x[20:], bandwidth=h) ** 2 for x in draws[1:]]
    assert held.floor(20) ** 2 == pytest.approx(sum(squares) / 100, rel=0.15)
    assert held.floor(80) < 0.7 * held.floor(20)


def test_texts_and_judges_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(rewards.entries, "ends", Entry(lambda: lambda texts: torch.tensor([float(t.endswith("c")) for t in texts]), "c"))
    flags = ["compare", "--model", "letters", "--reward", "cs", "--steps", 4, "--particles", 16, "--methods", "vasr"]
    assert viot_(*flags, "--judge", "ends", "--out", tmp_path / "a") == 0
    _, found = compared_(tmp_path / "a")
    p = Population.load(tmp_path / "a" / "vasr")
    nll = -Letters().joint[tuple(p.x0[0].T)].log()
    assert found["vasr"]["nll"] == pytest.approx(float(p.weights[0] @ nll.double()))
    ends = torch.tensor([float(text.endswith("c")) for text in p.samples[0]], dtype=torch.float64)
    assert found["vasr"]["judges"] == {"ends": pytest.approx(float(p.weights[0] @ ends))}
    assert found["vasr"]["mmd_base"] is None
    # Who steers is no judge.
    assert compared.reading(cli.commands.Task(model="letters", reward="cs"), ["cs", "ends"], None, None).judges == ("ends",)
    assert viot_(*flags, "--reference", 0, "--out", tmp_path / "b") == 0
    assert compared_(tmp_path / "b")[1]["vasr"]["nll"] is None
    assert viot_(*flags, "--reference", -1) == 2


def test_a_row_has_its_precision_against_the_plain_model(tmp_path):
    assert viot_(*DOTS, "--out", tmp_path / "a") == 0
    found = rows(tmp_path / "a")
    draws = torch.cat([reference._read(path, {}) for path in sorted((tmp_path / "a" / "reference").iterdir())])
    with quiet():
        p = viot.sample(models.entries["dots"].make(), Quadratic([2.0, 0.0], 0.3), "vasr", particles=10, groups=2, steps=8, progress=False)
    inside = sum(precision_recall(p.x0[g], draws, 3, weights_x=p.weights[g])[0] for g in (0, 1)) / 2
    assert found["vasr.80.0"]["metrics"]["precision base"] == pytest.approx(inside)
    # What the model would not draw is outside, each point by its weight.
    law = reference.Law(draws, torch.full((192,), 1 / 192, dtype=torch.float64), 0.0, 0.7)
    strange = torch.tensor([[2.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    assert law.precision(strange, torch.tensor([0.3, 0.7])) == pytest.approx(0.3)
    assert reference.Law(draws[:3], torch.ones(3) / 3, 0.0, 0.7).precision(strange) is None, "three points have no third neighbours"
    text = (tmp_path / "a" / "table.md").read_text(encoding="utf-8")
    assert "| best | MMD to base | precision, base | MMD |" in text
    drawing = figures.figure(list(found.values()))[1]
    assert "near against MMD</h3>" in drawing
    assert "near against how far it went</h3>" in drawing


# -- sheets ---------------------------------------------------------------------------------------------------------------------------


def test_pictures_are_kept_and_shown_from_files_alone(tmp_path, monkeypatch):
    flags = ["bench", "grey", "--methods", "base,vasr", "--nfe", "32,64", "--seeds", "2", "--out", tmp_path / "a"]
    assert viot_(*flags) == 0
    kept = Kept.read(tmp_path / "a" / "samples" / "vasr.64.1")
    with quiet():
        p = viot.sample(
            models.entries["grey"].make(), rewards["bright"].make(), "vasr", particles=16, groups=2, steps=4, seed=1, progress=False
        )
    best, draws = p.best(1), torch.cat([reference._read(path, {}) for path in sorted((tmp_path / "a" / "reference").iterdir())])
    assert torch.equal(kept.pictures["best"], (best.samples[:, 0] * 255).round().to(torch.uint8))
    assert torch.equal(kept.pictures["drawn"], (p.draw(1).samples[:, 0] * 255).round().to(torch.uint8))
    assert kept.rewards["best"] == best.rewards[:, 0].tolist()
    gaps = torch.cdist(best.samples.flatten(1).double(), draws.flatten(1).double()).amin(1)
    assert kept.nearest["best"] == pytest.approx(gaps.tolist())
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    words = check_page(page)
    assert "bright, 64 network rows per group" in words
    assert "distance to the nearest draw of the plain model, in the pixels themselves" in words
    assert "group 1, seed 1" in words
    # Two methods, two seeds of two groups, the best and a drawn one.
    assert page.count("<img") == 2 * 4 * 2
    with Image.open(tmp_path / "a" / "sheet.png") as sheet:
        assert sheet.width > 4 * 90
        assert len(sheet.getcolors(1 << 20)) > 20
    # Nothing but the files: neither model nor task.
    monkeypatch.delitem(models.entries, "grey")
    monkeypatch.delitem(bench.tasks.entries, "grey")
    (tmp_path / "a" / "report.html").unlink()
    assert viot_("bench", "report", tmp_path / "a") == 0
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8") == page
    # Rows of before there were samples.
    for path in (tmp_path / "a" / "samples").iterdir():
        path.unlink()
    assert viot_("bench", "report", tmp_path / "a") == 0
    bare = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Samples</h2>" not in bare
    assert "<h2>64 network rows per group</h2>" in bare


def test_large_pictures_are_kept_small(tmp_path):
    with quiet():
        p = viot.sample(models.entries["grey"].make(), rewards["bright"].make(), "base", particles=2, steps=2, progress=False)
    wide = Population(**{**vars(p), "samples": torch.nn.functional.interpolate(p.samples[0], (300, 600))[None]})
    Kept.of(wide).write(tmp_path / "x")
    kept = Kept.read(tmp_path / "x")
    assert kept.pictures["best"].shape == (1, 1, SIDE // 2, SIDE)
    assert kept.nearest == {}
    assert Kept.read(tmp_path / "y") is None
    (tmp_path / "z.json").write_text("{")
    with pytest.raises(ValueError, match=r"z\.json holds no samples of a row"):
        Kept.read(tmp_path / "z")


def test_points_are_seen_before_their_target(tmp_path):
    assert viot_(*DOTS, "--lam", "1,3", "--out", tmp_path / "a") == 0
    kept = Kept.read(tmp_path / "a" / "samples" / "vasr.80.0.lam3")
    with quiet():
        p = viot.sample(
            models.entries["dots"].make(), Quadratic([2.0, 0.0], 0.3), "vasr", particles=10, groups=2, steps=8, lam=3.0, progress=False
        )
    assert torch.equal(kept.points, p.x0.flatten(0, 1).float())
    assert kept.weights.tolist() == pytest.approx((p.weights / 2).flatten().tolist(), abs=1e-6)
    # The target is on the right.
    assert float((kept.target[:, 0] > 0).double().mean()) > 0.95
    words = check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))
    assert "near at λ = 1, 80 network rows per group" in words
    assert "near at λ = 3, 80 network rows per group" in words
    assert "In grey draws of the target." in words
    assert not (tmp_path / "a" / "sheet.png").exists()


def test_texts_are_kept_as_they_are(tmp_path):
    assert viot_("bench", "texts", "--methods", "vasr", "--nfe", "64", "--seeds", "1", "--out", tmp_path / "a") == 0
    told = json.loads((tmp_path / "a" / "samples" / "vasr.64.0.json").read_text(encoding="utf-8"))
    with quiet():
        p = viot.sample(Letters(), rewards["cs"].make(), "vasr", particles=16, steps=4, progress=False)
    assert told["texts"]["best"] == p.best(1).samples[0]
    assert told["rewards"]["best"] == p.best(1).rewards[0].tolist()
    assert told["texts"]["best"][0] in check_page((tmp_path / "a" / "report.html").read_text(encoding="utf-8"))


def test_samples_are_there_before_their_row(tmp_path, monkeypatch):
    there, write = [], desk.write_text

    def watched(path, text):
        there.append((tmp_path / "a" / "samples" / f"{path.stem}.safetensors").exists())
        write(path, text)

    monkeypatch.setattr(desk, "write_text", watched)
    assert viot_(*DOTS, "--out", tmp_path / "a") == 0
    assert there == [True, True]


# -- printed numbers ------------------------------------------------------------------------------------------------------------------


def written(method, seed=0, budget=1000, seconds=0.5, features="points", **metrics):
    reading = {"judges": [], "characters": False, "draws": 8, "features": features, "reference": 100}
    config = {"model": {"name": "dots"}, "reward": "near", "groups": 2, "steps": 4, "lam": 1.0, "reading": reading}
    row = {"viot": "1", "task": "dots", "method": method, "budget": budget, "seed": seed, "config": config, "nfe": budget, "reward_rows": 7}
    return {**row, "seconds": {"total": seconds}, "metrics": {"reward": 1.0, "mmd": 0.25, **metrics}}


def printed(**changes):
    told = {"model": "dots", "features": "points", "budget": 1000, **changes}
    return Numbers("arXiv 0000.00000, Table 9", "dots", columns=("mmd", "reward"), methods={"vasr": ((0.123, 0.004), (-0.5, None))}, **told)


def test_printed_numbers_stand_beside_rows_of_the_same_kind(monkeypatch):
    monkeypatch.setattr(published_numbers, "PUBLISHED", [printed()])
    text = table.markdown([written("vasr"), written("vasr", budget=8000)])
    line = "| vasr, published (arXiv 0000.00000, Table 9, 1\u202f000 rows) | −0.500 | 0.123 ± 0.004 | – "
    small, large = text.split("## 8")
    assert line in small
    assert line not in large, "another budget"
    assert "Lines marked “published” are arXiv 0000.00000, Table 9, as printed; their ± is the standard deviation over classes" in text
    assert "do not compare" not in text
    assert "vasr, published (arXiv" in check_page(table.page([written("vasr")]))
    # A mean over two keys is no printed one.
    assert line.count("0.123") == 1


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"features": "clip"}, "other features"),
        ({"model": "[theirs]"}, "another model"),
        ({"budget": None}, "another budget"),
        ({"budget": 2001}, "another budget"),
        ({"prompts": 40}, "another number of prompts"),
        ({"reward": "theirs"}, "another reward"),
        ({"model": "[theirs]", "features": "clip"}, "another model and other features"),
    ],
)
def test_printed_numbers_of_another_kind_are_refused(monkeypatch, change, other):
    monkeypatch.setattr(published_numbers, "PUBLISHED", [printed(**change)])
    for text in (table.markdown([written("vasr")]), check_page(table.page([written("vasr")]))):
        assert "0.123" not in text
        assert (
            f"Published numbers for this task exist (arXiv 0000.00000, Table 9), but were made with {other}: they do not compare with these "
            f"and are not shown."
        ) in text
    monkeypatch.setattr(
        published_numbers, "PUBLISHED", [printed(**{**change, "budget": 500 if "budget" in change else 1000, "prompts": None})]
    )
    assert ("0.123" in table.markdown([written("vasr")])) == bool({"budget", "prompts"} & set(change)), "it is this that was refused"


def test_of_several_budgets_the_nearest_is_shown(monkeypatch):
    monkeypatch.setattr(published_numbers, "PUBLISHED", [printed(budget=budget) for budget in (600, 900, 1900)])
    text = table.markdown([written("vasr")])
    assert text.count("published (arXiv 0000.00000") == 1
    assert "Table 9, 900 rows)" in text


def test_no_embedded_task_shows_printed_numbers():
    """They were made in features that nobody here has."""
    for numbers in published_numbers.PUBLISHED:
        assert numbers.task in bench.tasks
        assert all(len(values) == len(numbers.columns) for values in numbers.methods.values())
        preset = bench.tasks[numbers.task].make()
        row = written("vasr", budget=numbers.budget or 1000, features=preset.features)
        row["config"]["model"]["name"] = preset.model
        if preset.prompts is None:
            assert numbers.differs(row)
    one = published_numbers.PUBLISHED[0]
    assert one.line("vasr") == {"frechet": "0.015 ± 0.005", "cmmd": "0.087 ± 0.043", "reward": "−0.020 ± 0.002", "cosine": "0.495 ± 0.092"}


# -- time -----------------------------------------------------------------------------------------------------------------------------


def test_equal_time_takes_each_methods_largest_budget_within_it():
    took = {"base": (1.0, 2.0, 4.0), "dts": (3.0, 6.0, 12.0), "vasr": (1.5, 2.9, 5.0)}
    made = [
        written(method, seed, budget, t + (-0.1, 0.1)[seed], mmd=t)
        for method, times in took.items()
        for budget, t in zip((1000, 2000, 4000), times, strict=True)
        for seed in (0, 1)
    ]
    ((title, chosen),) = sections.timed(made)
    # All of base's budgets are within four seconds: the least of the methods' most.
    assert title == "At equal time: the largest budget of each within 4.0 s a run"
    assert {(row["method"], row["budget"]) for row in chosen} == {("base", 4000), ("dts", 1000), ("vasr", 2000)}
    assert "| dts, 1\u202f000 rows | 1 | 3 |" in table.markdown(made)
    # A single budget, or the same for all, has its table already.
    assert not sections.timed([row for row in made if row["budget"] == 1000])
    assert not sections.timed([row for row in made if row["method"] == "base"])


def test_time_is_told_before_the_first_row(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "make_row", stop)
    assert viot_(*DOTS, "--reference", "0", "--out", tmp_path / "a") == 130
    assert "by two small steps of the model" in capsys.readouterr().err
    monkeypatch.undo()


def test_time_goes_with_the_rows(tmp_path, monkeypatch):
    args = cli.parser().parse_args(["bench", "dots", "--methods", "base,svdd(m=30)", "--nfe", "80,160"])
    plan = runner.Bench.asked(args)
    model = models.entries["dots"].make()
    spent = {cell.file: forecast.spending(cell, model) for cell in plan.cells}
    assert spent["base.80.0.json"][0].network == 2 * 80
    found = forecast.seconds(plan.cells, spent, model)
    assert found["base.160.0.json"] == pytest.approx(2 * found["base.80.0.json"])
    failing = next(name for name in found if name.startswith("svdd") and ".80." in name)
    assert found[failing] == 0, "what cannot begin takes no time"

    def broken(*_):
        raise RuntimeError("no step")

    monkeypatch.setattr(forecast, "measure", broken)
    assert forecast.seconds(plan.cells, spent, model) == {}
    assert forecast.at_once(10**6) == os.cpu_count()


def test_what_a_row_does_beside_the_model_does_not_grow_with_its_particles():
    # Network calls that take half as long again do so in every row.
    assert forecast.after(1.5, 3.0, [2.0, 20.0]) == pytest.approx(33.0)
    # A row thought to take .05 s took 1.2: .1 for a slow machine, and 1.1 that the row of 4096 particles spends as well.
    assert forecast.after(24.0, 1.2, [0.05, 10.0]) == pytest.approx((0.1 + 1.1) + (20.0 + 1.1))


def test_nothing_to_do_measures_nothing(tmp_path, monkeypatch):
    assert viot_(*DOTS, "--reference", "0", "--out", tmp_path / "a") == 0
    monkeypatch.setattr(forecast, "measure", lambda run: pytest.fail("a step for nothing"))
    assert viot_(*DOTS, "--reference", "0", "--out", tmp_path / "a") == 0


# -- a bench that is killed -----------------------------------------------------------------------------------------------------------


KILLED = [
    "bench",
    "mixture",
    "--methods",
    "base,vasr,dts",
    "--nfe",
    "40",
    "--steps",
    "4",
    "--groups",
    "2",
    "--reference",
    "512",
    "--seeds",
    "8",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of the same bench, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert viot_(*KILLED, "--out", folder) == 0
    return {name: without_times(row) for name, row in rows(folder).items()}


@pytest.mark.skipif(not Path("/proc").exists(), reason="the processes of a session are found in /proc")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_bench_that_is_killed_loses_nothing(tmp_path, monkeypatch, whole, jobs):
    monkeypatch.setattr(reference, "CHUNK", 512)
    process = subprocess.Popen(
        [sys.executable, "-m", "viot.cli", *KILLED, "--jobs", jobs, "--out", str(tmp_path)], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    made, deadline = tmp_path / "rows", time.monotonic() + 300
    try:
        while len(list(made.glob("*.json"))) < 2:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "no rows in five minutes"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        # Its processes go with it.
        while _alive(process.pid):
            assert time.monotonic() < deadline, "a process outlived the first one"
            time.sleep(0.01)
    finally:
        for pid in _alive(process.pid):
            os.kill(pid, signal.SIGKILL)
    first = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.glob("*.json")}
    assert 2 <= len(first) < len(whole) == 24
    assert viot_(*KILLED, "--jobs", jobs, "--out", tmp_path) == 0
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in made.iterdir()}
    assert {name: after[name] for name in first} == first, "a row was made twice"
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]
    # Every row has its samples, also that whose process died in between.
    assert {path.stem for path in (tmp_path / "samples").iterdir()} == set(whole)
    assert {name: without_times(row) for name, row in rows(tmp_path).items()} == whole


def _alive(session):
    """The processes of a session that have not ended, where the system tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, sid = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[:4]
            if int(sid) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def test_the_mmd_in_the_plane_is_to_the_whole_measure():
    draws = torch.randn(3 * reference.POINTS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights, x = draws[:, 0].exp() / draws[:, 0].exp().sum(), draws[:50] / 2
    for d in (1, 2, 3):
        told, whole = (
            reference.Law(draws[:, :d], weights, 0.0, 0.7).mmd(x[:, :d]),
            mmd(x[:, :d], draws[:, :d], None, weights, bandwidth=0.7),
        )
        assert (told == pytest.approx(whole, rel=1e-9)) == (d < 3), "in three dimensions it is to draws of it"


# -- what must not be told ------------------------------------------------------------------------------------------------------------


def test_a_target_that_no_base_draw_reaches_is_said():
    from viot.bench.reference import References

    model = viot.load("mixture")
    points = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = References(points, model, "points", 1.0, 0.9)
    assert known.against("modes", 1.0).chain.log_z < 20
    known._scores["quadratic"] = {0: torch.full((64,), -torch.inf, dtype=torch.float64)}
    with pytest.raises(ValueError, match="none of the 64 base draws"):
        known.against("quadratic", 1.0)


def test_a_negative_reference_is_refused(tmp_path, capsys):
    from viot.cli import main

    assert main(["bench", "mixture", "--methods", "base", "--reference", "-1", "--out", str(tmp_path)]) == 2
    assert "number of base draws" in capsys.readouterr().err


def test_strengths_that_differ_have_files_that_differ():
    from viot.bench.plan import exactly

    assert [exactly(lam) for lam in (1.0, 0.5, 2.0)] == ["1", "0.5", "2"]
    assert exactly(1.0) != exactly(1.0000001)


def test_strengths_do_not_take_each_other_s_samples(tmp_path):
    """`lam1` begins the name of `lam1.5` too."""
    assert viot_(*FEW, "--lam", "1.5,1", "--out", tmp_path) == 0
    assert {path.stem for path in (tmp_path / "samples").iterdir()} == set(rows(tmp_path))


def test_samples_of_another_form_are_replaced(tmp_path):
    place = tmp_path / "samples" / "a.1.0.lam1"
    Kept("texts", [0], texts={"best": ["old"]}).write(place.with_name(place.name + ".5"))
    Kept("texts", [0], texts={"best": ["old"]}).write(place)
    Kept("points", [0], points=torch.zeros(1, 2), weights=torch.ones(1)).write(place)
    assert Kept.read(place).kind == "points"
    assert Kept.read(place.with_name(place.name + ".5")).texts == {"best": ["old"]}


# -- what people type ------------------------------------------------------------------------------------------------------------------

FEW = ["bench", "mixture", "--methods", "base", "--nfe", "200", "--seeds", "1", "--groups", "1", "--reference", "64"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", "0"], "--steps and --groups take whole numbers ≥ 1, not 0"),
        (["--groups", "0"], "--steps and --groups take whole numbers ≥ 1, not 0"),
        (["--lam", "nan"], "different finite numbers"),
        (["--lam", "1,inf"], "different finite numbers"),
        (["--reference", "1"], "number of base draws ≥ 2"),
        (["--features", "none"], "leave one of them out"),
        (["--methods", "vasr(temperature=1,temperature=2)"], "gives a setting twice"),
        (["--methods", "auto(prior=None)"], "prior of auto is a number, not None"),
    ],
)
def test_what_is_wrong_for_every_row_makes_none(tmp_path, capsys, flags, said):
    assert viot_(*FEW, *flags, "--out", tmp_path / "a") == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "a").rglob("*.json"))


def test_nobody_judges_beside_nobody(tmp_path):
    assert viot_(*FEW, "--judge", "none", "--judge", "quadratic", "--out", tmp_path) == 0
    assert rows(tmp_path)["base.200.0"]["config"]["reading"]["judges"] == ["quadratic"]


def test_a_device_that_is_not_there(tmp_path, capsys):
    flags = ["bench", "mnist", "--methods", "base", "--nfe", "4", "--steps", "2", "--seeds", "1", "--groups", "1", "--reference", "0"]
    assert viot_(*flags, "--device", "bogus", "--out", tmp_path) == 2
    assert "there is no device 'bogus' here" in capsys.readouterr().err


def test_two_tasks_do_not_share_a_folder(tmp_path, capsys):
    flags = ["--methods", "base", "--nfe", "4", "--steps", "2", "--seeds", "1", "--groups", "1", "--reference", "0", "--out", tmp_path]
    assert viot_("bench", "mnist", "--reward", "digit:7", *flags) == 0
    assert viot_("bench", "mnist-even-odd", *flags) == 2
    assert "is of the task mnist, not of mnist-even-odd" in capsys.readouterr().err


def test_strengths_may_come_one_by_one(tmp_path):
    """And each has a table, since each has a target, even where no method is in two of them."""
    for lam in ("2", "1,2", "1", "3"):
        assert viot_(*FEW, "--lam", lam, "--out", tmp_path) == 0
    assert sorted(rows(tmp_path)) == [f"base.200.0.lam{lam}" for lam in (1, 2, 3)]
    assert viot_(*FEW, "--out", tmp_path) == 0
    assert len(rows(tmp_path)) == 3, "λ = 1 is the task's own, and is there"
    two = tmp_path / "two"
    assert viot_(*FEW, "--lam", "1", "--out", two) == 0
    assert viot_(*FEW[:3], "importance", *FEW[4:], "--lam", "2", "--out", two) == 0
    heads = [line for line in (two / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert heads == [f"## 200 network rows per group, λ = {lam}" for lam in (1, 2)]


def test_points_in_features_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "myfeatures.py").write_text("import torch\n\ndef three(x):\n    return torch.cat([x.flatten(1), x.flatten(1)[:, :1]], 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "a"
    assert viot_(*FEW, "--features", "myfeatures:three", "--out", out) == 0
    place = out / "samples" / "base.200.0"
    assert Kept.read(place).target is None
    # What earlier versions kept beside the points is not drawn.
    Kept("points", [0], points=torch.zeros(4, 2), weights=torch.ones(4), target=torch.zeros(5, 3)).write(place)
    assert viot_("bench", "report", out) == 0
    assert viot_(*FEW, "--out", tmp_path / "b") == 0
    assert Kept.read(tmp_path / "b" / "samples" / "base.200.0").target.shape[1] == 2


def test_another_model_has_other_modes(tmp_path):
    assert viot_(*FEW, "--model", "checkerboard", "--features", "points", "--out", tmp_path) == 0
    row = rows(tmp_path)["base.200.0"]
    assert "mmd" in row["metrics"]
    assert "modes" not in row["metrics"]
    assert row["config"]["reading"]["bandwidth"] is None


def test_points_far_apart_are_compared_in_pairs():
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[0] *= 1e6
    weights = torch.full((300,), 1 / 300, dtype=torch.float64)
    law = reference.Law(points, weights, 0.0, 0.7)
    assert law._spectrum is None
    assert law.mmd(points[:50]) == pytest.approx(mmd(points[:50], points, bandwidth=0.7))
    with pytest.raises(ValueError, match="bandwidth of a kernel must be finite and > 0, not 0"):
        reference.Law(torch.zeros(6, 1), torch.ones(6) / 6, 0.0, 0.0).mmd(torch.zeros(2, 1))


def test_broken_files_are_told_by_name(tmp_path, capsys):
    assert viot_(*FEW, "--out", tmp_path) == 0
    base = tmp_path / "reference" / "000.safetensors"
    whole = base.read_bytes()
    base.write_bytes(whole[:100])
    assert viot_(*FEW, "--seeds", "2", "--out", tmp_path) == 2
    assert "000.safetensors holds no base draws" in capsys.readouterr().err
    base.write_bytes(whole)
    row = (tmp_path / "rows" / "base.200.0.json").read_text(encoding="utf-8")
    for content in (b"\xff\xfe", b"{}", json.dumps({**json.loads(row), "config": {}}).encode()):
        (tmp_path / "rows" / "x.json").write_bytes(content)
        assert viot_("bench", "report", tmp_path) == 2
        assert "x.json is not the row of a bench" in capsys.readouterr().err
    (tmp_path / "rows" / "x.json").unlink()
    (tmp_path / "rows" / "y.json").mkdir()
    assert viot_("bench", "report", tmp_path) == 2
    assert "y.json is not the row of a bench" in capsys.readouterr().err


def test_one_base_draw_is_no_comparison(tmp_path, capsys):
    flags = ["compare", "--model", "mixture", "--reward", "modes", "--methods", "vasr,fkd", "--particles", "4", "--steps", "20"]
    assert viot_(*flags, "--reference", "1", "--out", tmp_path / "a") == 2
    assert "base draws per group ≥ 2" in capsys.readouterr().err


def test_costs_are_those_of_the_task():
    """As `viot list tasks` says them: groups, rewards and network rows of all budgets."""
    told = 0
    for name, entry in bench.tasks.entries.items():
        if found := re.match(r"((?:\d+ × )*\d+) network rows per seed", getattr(entry, "cost", None) or ""):
            preset = entry.make()
            if preset.prompts is None and preset.groups is not None:
                told += 1
                assert math.prod(map(int, found[1].split(" × "))) == preset.groups * sum(preset.nfe) * max(1, len(preset.rewards or ())), (
                    name
                )
    assert told > 10
