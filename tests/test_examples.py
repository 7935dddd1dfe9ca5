"""The examples run as they stand, and what they show holds."""

import math
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import viot

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"[+−-]?\d+(?:\.\d+)?"


def example(name):
    """What the file defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def printed(capsys):
    """The numbers of each printed line by its first word, or two."""
    lines = capsys.readouterr().out.splitlines()
    return {
        re.split(r"\s{2,}| mean | ESS ", line.strip())[0]: [float(v) for v in re.findall(NUMBER, line)] for line in lines if "log Z" in line
    }


def test_a_guidance_moves_the_proposal_and_not_the_target(capsys):
    made = example("your_guidance")
    made["main"]()
    rows = printed(capsys)
    law, log_z = made["MODEL"].law.tilt(torch.tensor([1.0, 2.0]), 1.0)
    for name in ("none", "toward the center", "astray", "learned"):
        x, y, ess, _, found = rows[name]
        # 40 steps are not the limit, and 2000 particles not all of them.
        assert math.dist((x, y), law.mean.tolist()) < 0.15, name
        assert abs(found - log_z) < 0.15, name
        assert 50 < ess < 2000
    assert rows["toward the center"][2] > rows["none"][2] > rows["astray"][2]


def test_a_method_of_ones_own_is_exact(capsys):
    example("your_method")["main"]()
    lines = [line for line in capsys.readouterr().out.splitlines() if "error" in line]
    ess, errors = zip(
        *((float(v[0]), float(v[-1])) for v in (re.findall(NUMBER, line.replace("of 256", "")) for line in lines)), strict=True
    )
    assert len(lines) == 4
    assert max(errors) < 0.5
    assert min(ess[1:]) > ess[0]


def test_a_model_of_ones_own_is_steered(capsys):
    example("your_model")["main"]()
    rows = {line.split()[0]: [float(v) for v in re.findall(NUMBER, line)] for line in capsys.readouterr().out.splitlines()}
    assert abs(rows["base"][1]) < 0.35
    for method in ("vasr", "fvd", "fkd"):
        # 2 I₁(4) / I₀(4), the mean of exp(4 sin) on a circle of radius 2.
        assert abs(rows[method][1] - 1.73) < 0.25, method


def test_rewards_of_ones_own_are_steered_by():
    found = example("your_reward")["main"]()
    assert len(found) == 5
    for name, (before, after) in found.items():
        spread = before.rewards.std(1).mean()
        assert after.mean().mean() - before.mean().mean() > 0.3 * spread, name
    assert set(found["the sum of two"][1].parts) == {"three", "symmetric"}


def test_a_pipeline_of_ones_own_is_a_script_with_a_name(tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import tiny

    tiny.sd().save_pretrained(tmp_path / "pipe")
    asked = ["a red cat", "two blue sevens"]
    command = [str(tmp_path / "pipe"), "--prompt", *asked, "--reward", "brightness", "--particles", "4", "--steps", "3"]
    main = example("your_pipeline")["main"]
    best = main([*command, "--out", str(tmp_path / "out")])
    assert best.shape == (2, 1)
    assert best.config["model"]["prompts"] == asked
    # As good as any of the four, and pictures to look at.
    plain = viot.sample(viot.from_pipeline(tiny.sd(), prompt=asked), "brightness", "base", particles=4, steps=3, progress=False)
    assert (best.rewards[:, 0] >= plain.rewards.mean(1)).all()
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2
    with pytest.raises(SystemExit):
        main(["--particles", "many"])


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    out = tmp_path_factory.mktemp("maze")
    made = example("maze")
    arguments = ["--out", str(out), "--updates", "2000", "--groups", "8", "--particles", "128", "--methods", "base,importance,vasr"]
    return made, *made["main"](arguments), out


def test_the_planner_learns_the_maze(maze):
    made, planner, found, *_ = maze
    clear = [(made["to_walls"](made["between"](paths, 12)) > 0.02).all(-1).double().mean() for paths in found["base"].samples]
    # Against paths that know of the training data only how much they vary.
    noise = planner.decode(torch.randn(200, 16, generator=torch.Generator().manual_seed(0)), None)
    blind = (made["to_walls"](made["between"](noise, 12)) > 0.02).all(-1).double().mean()
    assert torch.stack(clear).mean() > 0.4
    assert blind < 0.1


def test_steering_finds_the_way_around_what_was_never_seen(maze):
    made, planner, found, toward, around, _ = maze
    safe = {name: made["share"](population, made["safely"]) for name, population in found.items()}
    assert safe["base"].max() < 0.02
    # A group commits to one way early, so that shares vary by a third between groups.
    assert safe["vasr"].mean() > safe["importance"].mean() + 0.1
    assert made["share"](around, made["safely"]).mean() > 0.25
    # Without the second wish many arrive through the barrier; with a strength of nothing nobody does.
    free = [made["share"](population, made["free"]).mean() for population in (toward, around)]
    assert free[1] > free[0] + 0.15
    unwilling = made["race"](planner, ["vasr"], particles=128, groups=8, lam=0.0)["vasr"]
    assert made["share"](unwilling, made["safely"]).max() < 0.02


def test_the_picture_of_the_maze(maze):
    *_, out = maze
    svg = ET.parse(out / "maze.svg").getroot()
    panels = svg.findall("{http://www.w3.org/2000/svg}g")
    lines = [len(panel.findall("{http://www.w3.org/2000/svg}polyline")) for panel in panels]
    assert lines == [48, 96, 96]
    assert (out / "maze.svg").stat().st_size < 200_000


def test_no_example_is_left_out():
    asked = Path(__file__).read_text()
    assert all(f'example("{path.stem}")' in asked for path in EXAMPLES.glob("*.py"))


def test_an_example_is_a_script_that_says_what_it_takes():
    said = subprocess.run([sys.executable, str(EXAMPLES / "maze.py"), "--help"], capture_output=True, text=True, check=True).stdout
    assert "--updates" in said
