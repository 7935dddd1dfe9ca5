"""Published tasks: what they hold, that flags go over them, and what happens offline."""

import io
import json
import urllib.error
import urllib.request

import pytest
from helpers import viot_
from painter import Painter

from viot import bench, prompts
from viot.methods import make, methods
from viot.models import models
from viot.registry import Entry
from viot.rewards import rewards

HERE = ["--model", "painter", "--reward", "brightness", "--steps", "4"]


def config(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]


@pytest.fixture(autouse=True)
def stubs(tmp_path, monkeypatch):
    monkeypatch.setitem(models.entries, "painter", Entry(Painter, "a disc"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """What the hub answers: set `text`, or leave it None for a machine that is offline. Lists the addresses asked for."""

    class Hub(list):
        text = None

    hub = Hub()

    def answer(url, timeout):
        hub.append(url)
        if hub.text is None:
            raise urllib.error.URLError("no route to host")
        return io.BytesIO(hub.text.encode())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return hub


# -- what they hold -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(bench.tasks))
def test_every_task_names_things_that_exist(name):
    task = bench.tasks[name].make()
    assert {name.partition(":")[0] for name in (task.reward, *task.judges)} <= set(rewards)
    assert task.papers
    assert task.particles * task.steps >= 1000
    for method, (lam, settings) in task.methods.items():
        made = make(method, **settings)
        assert lam > 0
        if task.prompts is None:
            # Rewards of texts are cheap.
            continue
        # Those that guess on the way decode dear pictures at few steps; gradients and candidates need them at every step.
        if method.startswith("svdd") or made.needs_gradient:
            assert task.particles * task.steps >= made.cost(task.steps)
        else:
            assert made.cost(task.steps) == task.steps
            assert 1 <= made.scored(task.steps) <= 10
    assert set(task.methods) == set(methods) & set(task.methods)


def test_published_settings_are_those_of_the_papers():
    task = bench.tasks["drawbench"].make()
    assert task.model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    lam, settings = task.published("fkd")
    fkd = make("fkd", **settings)
    assert (lam, fkd.potential, fkd.eta, fkd.resampling, fkd.ess_threshold) == (10.0, "max", 1.0, "multinomial", 0.5)
    assert fkd.scoring(50) == [10, 20, 30, 40]
    lam, settings = task.published("vasr")
    vasr = make("vasr", **settings)
    assert (lam, vasr.eta, vasr.resampling) == (1.0, 1.0, "systematic")
    assert vasr.scoring(50) == list(range(5, 50, 5))
    # A method without published settings has its own, at the task's strength.
    assert task.published("another") == (task.lam, {})


def test_the_animals_are_forty_five():
    animals = bench.tasks["animals"].make().prompts()
    assert len(set(animals)) == len(animals) == 45
    assert (animals[0], animals[-1]) == ("cat", "kangaroo")


def test_drawbench_is_downloaded_and_counted(hub, monkeypatch):
    get = bench.tasks["drawbench"].make().prompts
    hub.text = "\ufeffPrompts,Category\n" + "".join(f'"A red car, number {i}.",Colors\n' for i in range(200))
    assert get()[7] == "A red car, number 7."
    assert hub == ["https://huggingface.co/datasets/sayakpaul/drawbench/resolve/main/DrawBench%20Prompts%20-%20Sheet1.csv"]
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    get()
    assert hub[-1].startswith("https://mirror.example/datasets/")
    hub.text = "Prompts,Category\nA red car.,Colors\n"
    with pytest.raises(ValueError, match="holds 1 prompts, not the 200 of drawbench"):
        get()
    hub.text = "<html>sign in</html>"
    with pytest.raises(ValueError, match="no column named prompt"):
        get()


# -- on the command line --------------------------------------------------------------------------------------------------------------


def test_a_task_is_listed_with_its_papers(capsys):
    assert viot_("list", "tasks") == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in bench.tasks:
        assert name in out
        assert all(paper in out for paper in bench.tasks[name].make().papers)


def test_a_task_says_what_flags_do_not(tmp_path, hub):
    small = ["--groups", 2, "--particles", 4]
    assert viot_("sample", "--task", "animals", *HERE, *small, "--method", "fkd(ess_threshold=None)", "--out", tmp_path / "a") == 0
    found = config(tmp_path / "a")
    assert (found["lam"], found["method"]["potential"], found["method"]["ess_threshold"]) == (10.0, "max", None)
    assert found["task"] == "animals"
    assert found["model"]["prompts"] == prompts.parse("\n".join(bench.tasks["animals"].make().prompts()), "x.txt")
    assert viot_("sample", "--task", "animals", *HERE, *small, "--lam", 3, "--set", "eta=0.5", "--out", tmp_path / "b") == 0
    found = config(tmp_path / "b")
    assert (found["method"]["name"], found["lam"], found["method"]["eta"]) == ("vasr", 3.0, 0.5)
    # The record alone repeats it.
    assert viot_("sample", "--config", tmp_path / "a", "--out", tmp_path / "c") == 0
    # (Versions are of what had been imported, which the first run may have been the first to do.)
    again, first = ({k: v for k, v in config(tmp_path / name).items() if k != "versions"} for name in "ca")
    assert again == first
    assert not hub


def test_prompts_of_ones_own_need_no_network(tmp_path, capsys, hub):
    (tmp_path / "own.csv").write_text("Prompt\na red disc\na green disc\n", encoding="utf-8")
    assert viot_("sample", "--task", "drawbench", "--prompts", "own.csv", *HERE, "--particles", 2, "--out", tmp_path / "a") == 0
    assert config(tmp_path / "a")["model"]["prompts"] == ["a red disc", "a green disc"]
    assert not hub
    capsys.readouterr()
    assert viot_("sample", "--task", "drawbench", *HERE, "--out", tmp_path / "b") == 2
    err = capsys.readouterr().err
    assert "the prompts of drawbench could not be downloaded" in err
    assert "(no route to host). Give a copy of your own instead: --task drawbench --prompts FILE" in err
    assert len(hub) == 1
    assert not (tmp_path / "b").exists()


def test_a_task_is_not_a_record(tmp_path, capsys):
    assert viot_("sample", "--task", "animals", "--config", "run.json") == 2
    assert "--config and --task both say what to run" in capsys.readouterr().err
    assert viot_("sample", "--task", "animal") == 2
    assert "Did you mean 'animals'?" in capsys.readouterr().err


def test_compare_runs_every_method_as_it_was_published(tmp_path, capsys):
    flags = ["--task", "animals", *HERE, "--groups", 1, "--particles", 4, "--methods", "fkd,vasr,fkd(potential=diff)"]
    assert viot_("compare", *flags, "--out", tmp_path / "a") == 0
    out = capsys.readouterr().out
    assert "10 for fkd, 1 for vasr and 10 for fkd(potential=diff)" in out
    saved = json.loads((tmp_path / "a" / "compare.json").read_text(encoding="utf-8"))
    assert saved["task"]["lam"] == {"fkd": 10.0, "vasr": 1.0, "fkd(potential=diff)": 10.0}
    potentials = [config(tmp_path / "a" / f)["method"]["potential"] for f in ("fkd", "fkd-potential-diff")]
    assert potentials == ["max", "diff"]
    assert "the methods&#x27; targets differ" in (tmp_path / "a" / "compare.html").read_text(encoding="utf-8")
    assert viot_("compare", *flags, "--lam", 2, "--out", tmp_path / "b") == 0
    assert json.loads((tmp_path / "b" / "compare.json").read_text(encoding="utf-8"))["task"]["lam"] == 2.0
