"""Prompts: files that hold them, flags that name them, and what a run of several leaves behind."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import quiet, viot_
from painter import Painter
from PIL import Image

import viot
from viot import prompts
from viot.models import models
from viot.population import Population
from viot.registry import Entry
from viot.report import contact_sheet, files, page, picks, sheet
from viot.rewards import rewards

RED, GREEN = "a red disc", "a green disc, wide & <bold>"
PAINT = ["--model", "painter", "--reward", "redness", "--particles", "16", "--steps", "6", "--lam", "40"]


def record(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def redness(samples, prompts):
    return 2 * (samples[:, 0] - samples[:, 2]).flatten(1).mean(1)


@pytest.fixture(autouse=True)
def stubs(tmp_path, monkeypatch):
    """The painter and its reward by name, in an empty folder; returns the painters made."""
    made = []
    monkeypatch.setitem(models.entries, "painter", Entry(lambda **told: made.append(Painter(**told)) or made[-1], "a disc"))
    monkeypatch.setitem(rewards.entries, "redness", Entry(lambda: lambda samples, prompts: redness(samples, prompts), "red minus blue"))
    monkeypatch.chdir(tmp_path)
    return made


def painted(prompt=(RED, GREEN), particles=16, method="vasr", seed=0, **told):
    model = Painter(list(prompt), **told)
    run = {"steps": 6, "lam": 40.0, "seed": seed, "progress": False}
    with quiet():
        return viot.sample(model, redness, method, particles=particles, **run)


# -- files that hold prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "a cat\n\n  two dogs, red \na cat\n"),
        ("a.csv", 'Category,Prompts\nx,a cat\ny,"two dogs, red"\nz,a cat\n'),
        ("a.CSV", 'PROMPT\r\na cat\r\n"two dogs, red"\r\na cat\r\n'),
        ("a.tsv", "text\tChallenge\na cat\tx\ntwo dogs, red\ty\na cat\tz\n"),
        ("a.json", '["a cat", {"id": 3, "prompt": "two dogs, red"}, "a cat"]'),
        ("a.jsonl", '{"prompt": "a cat"}\n\n{"Text": "two dogs, red", "tag": 1}\n"a cat"\n'),
    ],
)
def test_files_are_read_in_order_with_repetitions(name, text, tmp_path):
    for start in ("", "\ufeff"):
        (tmp_path / name).write_text(start + text, encoding="utf-8", newline="")
        assert prompts.read(tmp_path / name) == ["a cat", "two dogs, red", "a cat"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n\n", "a.txt holds no prompts"),
        ("a.csv", "", "a.csv holds no prompts"),
        ("a.csv", "Prompt\n", "a.csv holds no prompts"),
        ("a.csv", "words,Category\na,b\n", "no column named prompt or prompts or text; its columns are words, Category"),
        ("a.csv", "id,prompt\n1,a\n2,\n", "line 3 of .*a.csv has no prompt"),
        ("a.json", "[]", "holds no prompts"),
        ("a.json", '{"prompt": "a"}', "must hold a list"),
        ("a.json", '["a", 3]', "entry 2 of .*a.json is not a prompt: 3"),
        ("a.json", '["a", ', "not valid JSON"),
        ("a.jsonl", '{"context": "a"}', "no field named prompt or prompts or text; its fields are context"),
        ("a.yaml", "- a", "they are .txt, .csv, .tsv, .json, .jsonl"),
        ("a.txt", b"caf\xe9", r"not UTF-8 text \(byte 3\)"),
    ],
)
def test_what_cannot_be_read_is_told(name, text, message, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        prompts.read(tmp_path / name)


def test_missing_files_and_folders_are_told(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("nowhere.txt", "folder.txt"):
        with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
            prompts.read(tmp_path / name)


def test_slugs_are_words_of_a_bounded_length():
    assert prompts.slug("A red — 7/8!") == "a-red-7-8"
    assert prompts.slug("école Über 猫") == "école-über-猫"
    assert prompts.slug("../..\\: ") == ""
    long = prompts.slug("one two three four five six seven eight nine ten eleven")
    assert long == "one-two-three-four-five-six-seven-eight"
    assert len(prompts.slug("x" * 300)) == 40
    assert prompts.short("a\n b " + "word " * 40).endswith("word…")
    assert len(prompts.short("word " * 40)) <= 80


# -- flags ----------------------------------------------------------------------------------------------------------------------------


def test_prompts_become_groups_and_the_record_repeats_the_run(tmp_path, stubs):
    (tmp_path / "more.csv").write_text("Prompts\na blue disc\na blue disc\n", encoding="utf-8")
    flags = [
        "--prompt",
        RED,
        "--prompts",
        tmp_path / "more.csv",
        "--negative-prompt",
        "mud",
        "--call",
        "strength=0.5",
        "--dtype",
        "bfloat16",
    ]
    assert viot_("sample", *PAINT, *flags, "--seed", 3, "--out", tmp_path / "a") == 0
    seen = {"negative_prompt": "mud", "strength": 0.5, "dtype": "bfloat16", "device": None}
    assert (stubs[-1].prompts, stubs[-1].seen) == (["a blue disc", "a blue disc", RED], seen)
    a = record(tmp_path / "a")
    assert a["config"]["groups"] == [0, 1, 2]
    assert a["config"]["model"]["prompts"] == stubs[-1].prompts
    assert viot_("sample", "--config", tmp_path / "a", "--out", tmp_path / "b") == 0
    assert (stubs[-1].prompts, stubs[-1].seen) == (stubs[0].prompts, seen)
    b = record(tmp_path / "b")
    assert a["config"] == b["config"]
    assert a["rewards"] == b["rewards"]
    assert a["unsteered"]["rewards"] == b["unsteered"]["rewards"]
    # Other prompts over the record: as many groups as they are.
    assert viot_("sample", "--config", tmp_path / "a", "--prompt", GREEN, "--out", tmp_path / "c") == 0
    c = record(tmp_path / "c")["config"]
    assert (c["groups"], stubs[-1].prompts, stubs[-1].seen["negative_prompt"]) == ([0], [GREEN], "mud")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "digits", "--prompt", "a cat"], "the model digits follows no prompts"),
        (["--model", "gaussian", "--prompt", "a cat"], "the model gaussian follows no prompts"),
        (["--model", "digits", "--call", "guidance=3"], "the model digits takes no guidance; leave --call guidance=… out"),
        (["--model", "painter", "--call", "guidance=3"], "the model painter takes no guidance"),
        (["--model", "gaussian", "--dtype", "float16"], "the model gaussian takes no dtype; leave --dtype out"),
        (["--model", "painter", "--call", "prompt=a cat"], "--call prompt=… is written --prompt here"),
        (["--model", "painter", "--call", "num_inference_steps=9"], "is written --steps here"),
        (["--model", "painter", "--call", "strength"], "a setting is written key=value, for example guidance_scale=5"),
        (["--model", "painter", "--prompts", "nowhere.csv"], "there is no file nowhere.csv"),
        (["--model", "painter", "--prompt", " "], "--prompt takes words"),
        (["--model", "painter", "--unsteered", "-1"], "--unsteered takes a number of draws"),
    ],
)
def test_mistakes_are_told_before_anything_runs(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Painter, "predict", lambda *args: pytest.fail("the network was called"))
    for command in (["sample"], ["compare", "--methods", "vasr"]):
        assert viot_(*command, "--reward", "brightness", *flags, "--out", tmp_path / "a") == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert message in err
    assert not list(tmp_path.rglob("*.*"))


def test_dry_run_names_prompts_and_what_is_counted_apart(capsys, monkeypatch):
    monkeypatch.setattr(Painter, "predict", lambda *args: pytest.fail("the network was called"))
    assert viot_("sample", *PAINT, *[f for i in range(5) for f in ("--prompt", f"disc {i}")], "--dry-run") == 0
    out = capsys.readouterr().out
    assert "5: disc 0, disc 1, disc 2, …" in out
    assert "network rows   480" in out
    assert "unsteered      60 network rows more" in out


# -- unsteered draws ------------------------------------------------------------------------------------------------------------------


def test_unsteered_draws_are_the_plain_model_counted_apart(tmp_path, capsys):
    assert (
        viot_("sample", *PAINT, "--prompt", RED, "--prompt", GREEN, "--method", "vasr(eta=0.5)", "--seed", 2, "--out", tmp_path / "a") == 0
    )
    assert "of 2 draws per group, 24 network rows counted apart" in capsys.readouterr().out
    a = record(tmp_path / "a")
    assert (a["nfe"], a["unsteered"]["nfe"]) == (192, 24)
    plain = viot.sample(Painter([RED, GREEN]), redness, viot.methods.Base(eta=0.5), particles=2, steps=6, lam=40.0, seed=2, progress=False)
    kept = Population.load(tmp_path / "a").unsteered
    assert torch.equal(kept.samples, plain.samples)
    assert torch.equal(kept.rewards, plain.rewards)
    page_ = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "Unsteered, first of 2" in page_
    assert "Counted apart: 2 unsteered draws per group, 24 network rows" in page_


def test_unsteered_draws_can_be_asked_for_and_switched_off(tmp_path):
    for n, flags in enumerate((["--unsteered", 0], ["--method", "base"])):
        assert viot_("sample", *PAINT, "--prompt", RED, *flags, "--out", tmp_path / str(n)) == 0
        assert "unsteered" not in record(tmp_path / str(n))
        assert not (tmp_path / str(n) / "unsteered.safetensors").exists()
        assert "Unsteered" not in (tmp_path / str(n) / "report.html").read_text(encoding="utf-8")
    assert viot_("sample", *PAINT, "--prompt", RED, "--unsteered", 3, "--out", tmp_path / "c") == 0
    assert record(tmp_path / "c")["unsteered"]["config"]["particles"] == 3


def test_a_reward_that_kills_the_plain_model_does_not_stop_the_run(tmp_path, capsys, monkeypatch):
    def picky(samples):
        picky.calls += 1
        return torch.where(torch.tensor(picky.calls == 1), -torch.inf, samples.flatten(1).mean(1))

    picky.calls = 0
    monkeypatch.setitem(rewards.entries, "redness", Entry(lambda: picky, "dead at first"))
    assert viot_("sample", *PAINT, "--prompt", RED, "--out", tmp_path / "a") == 0
    assert "note: no unsteered draws to show: every particle" in capsys.readouterr().err
    assert "unsteered" not in record(tmp_path / "a")


def test_compare_shows_the_plain_model_beside_every_method(tmp_path):
    both = ["--prompt", RED, "--prompt", GREEN]
    assert viot_("compare", "--methods", "vasr,base,fkd", *PAINT, *both, "--out", tmp_path / "a") == 0
    vasr, base = record(tmp_path / "a" / "vasr"), record(tmp_path / "a" / "base")
    # Where the plain model runs anyway, its first draws are shown and cost nothing.
    assert vasr["unsteered"]["rewards"] == [row[:2] for row in base["rewards"]]
    assert (vasr["unsteered"]["nfe"], vasr["unsteered"]["config"]["particles"]) == (0, 2)
    saved = json.loads((tmp_path / "a" / "compare.json").read_text(encoding="utf-8"))
    assert [r["method"] for r in saved["rows"]] == ["vasr", "base", "fkd"]
    best = [max(row) for row in vasr["rewards"]]
    assert saved["rows"][0]["best_per_prompt"] == pytest.approx(sum(best) / 2)
    text = (tmp_path / "a" / "compare.html").read_text(encoding="utf-8")
    assert "Side by side" in text
    assert "a green disc, wide &amp; &lt;bold&gt;" in text
    assert text.count("<em>unsteered</em>") == text.count("<em>fkd</em>") == 2
    assert viot_("compare", "--methods", "vasr,fkd", *PAINT, *both, "--out", tmp_path / "b") == 0
    assert record(tmp_path / "b" / "fkd")["unsteered"]["nfe"] == 24


# -- pictures on disk -----------------------------------------------------------------------------------------------------------------


def test_every_picture_is_a_file_that_tells_its_story(tmp_path):
    population = painted(checker=True, seed=4)
    population.save(tmp_path)
    images = record(tmp_path)["images"]
    assert [group["prompt"] for group in images] == [RED, GREEN]
    names = [told["file"] for told in images[1]["files"]]
    assert names == [f"images/001-a-green-disc-wide-bold/{rank:02d}.png" for rank in range(16)]
    for i, group in enumerate(images):
        assert [told["reward"] for told in group["files"]] == population.rewards[i].sort(descending=True).values.tolist()
        told = group["files"][3]
        j = told["particle"]
        with Image.open(tmp_path / told["file"]) as image:
            assert torch.equal(
                torch.tensor(list(image.tobytes())).view(24, 24, 3), (population.samples[i, j] * 255).round().permute(1, 2, 0)
            )
            text = image.text
        assert text["prompt"] == [RED, GREEN][i]
        assert float(text["reward"]) == population.rewards[i, j].item() == told["reward"]
        assert float(text["log_weight"]) == population.log_weights[i, j].item()
        assert (text["seed"], text["group"], text["method"], text["particle"]) == ("4", str(i), "vasr", str(j))
        assert json.loads(text["parts"]) == {"nsfw": population.parts["nsfw"][i, j].item()}
    assert not list(tmp_path.rglob("*.part"))


def test_groups_keep_their_index_and_prompts_repeat(tmp_path):
    model = Painter([RED, "日本の猫"])
    population = viot.sample(model, redness, "base", particles=2, steps=2, groups=range(3, 6), progress=False)
    population.save(tmp_path)
    assert population.prompts == ["日本の猫", RED, "日本の猫"]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["003-日本の猫", "004-a-red-disc", "005-日本の猫"]
    with Image.open(tmp_path / "images" / "005-日本の猫" / "00.png") as image:
        assert image.text["prompt"] == "日本の猫"
    text = page(population)
    assert "日本の猫 (group 5)" in text
    assert "a red disc (group 4)" not in text


def test_an_earlier_runs_pictures_go_and_nothing_else(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_bytes(b"")
    painted(["a blue disc"]).save(tmp_path)
    painted([RED], particles=3).save(tmp_path)
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["000-a-red-disc", "mine.png"]
    assert len(list((tmp_path / "images" / "000-a-red-disc").iterdir())) == 3
    # A record must not lead out of the folder of pictures.
    (tmp_path / "keep.png").write_bytes(b"")
    told = record(tmp_path)
    told["images"][0]["files"] = [{"file": "images/../keep.png"}, {"file": str(tmp_path / "keep.png")}]
    (tmp_path / "run.json").write_text(json.dumps(told), encoding="utf-8")
    painted([RED], particles=3).save(tmp_path)
    assert (tmp_path / "keep.png").exists()


def test_of_a_large_population_the_best_few_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PICTURES", 12)
    population = painted()
    assert files.kept(population) == 6
    population.save(tmp_path)
    told = record(tmp_path)["images"][0]["files"]
    assert [t["reward"] for t in told] == population.rewards[0].sort(descending=True).values[:6].tolist()
    monkeypatch.setattr(files, "PICTURES", 2)
    assert files.kept(population) == files.LEAST


def test_the_dead_come_last_and_are_written_as_json(tmp_path):
    population = painted([RED], particles=4, method="importance")
    r = population.rewards.clone()
    r[0, 0] = -torch.inf
    replace(population, rewards=r).save(tmp_path)
    last = record(tmp_path)["images"][0]["files"][-1]
    assert (last["particle"], last["reward"]) == (0, None)


# -- the sheet ------------------------------------------------------------------------------------------------------------------------


def test_the_sheet_has_a_title_for_every_prompt_and_the_best_first():
    one, long = contact_sheet(painted([RED])), contact_sheet(painted([RED + " that goes on" * 30]))
    assert long.height > one.height
    two = contact_sheet(painted())
    assert two.height > one.height
    population = painted([RED], particles=2)
    swapped = population._take(torch.tensor([[1, 0]]))
    assert contact_sheet(population).tobytes() == contact_sheet(swapped).tobytes()


def test_the_sheet_writes_numbers_with_letters_its_font_has():
    from PIL import ImageFont

    from viot.report.words import number

    font = ImageFont.load_default(20)
    missing = bytes(font.getmask("\uffff"))
    said = sheet.plain_letters(" ".join(number(v) for v in (-1.5, 3.2e-17, -4e9, float("inf"), float("nan"))))
    assert said == "-1.50 3.20e-17 -4.00e9 inf -"
    assert all(bytes(font.getmask(letter)) != missing for letter in said if letter != " ")


def test_a_sheet_of_very_many_prompts_stays_one():
    few = painted([RED] * 64, particles=1, method="base")
    many = replace(few, **{f: getattr(few, f).repeat(3, *[1] * (getattr(few, f).ndim - 1)) for f in ("samples", "rewards", "log_weights")})
    many = replace(many, config={**few.config, "groups": list(range(192))})
    assert contact_sheet(many).height < contact_sheet(few).height + 60


# -- picks ----------------------------------------------------------------------------------------------------------------------------


def shades(values, rewards, roots):
    """A population of flat grey pictures."""
    population = painted([RED], particles=len(values))
    samples = torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, -1, 3, 24, 24)
    return replace(population, samples=samples, rewards=torch.tensor([rewards]).double(), roots=torch.tensor([roots]))


def test_diverse_picks_are_far_from_the_best_and_from_each_other():
    values = [0.5, 0.52, 0.9, 0.15, 0.51, 0.88, 0.02, 1.0]
    population = shades(values, [9.0, 8, 7, 6, 5, 4, 3, 2], range(8))
    assert picks.best(population, 0) == 0
    assert picks.diverse(population, 0, 2) == [7, 6]
    # Beyond the better half, and beyond so many, nobody is asked.
    rewards = [9.0, 8, 7, 6, 5, 4, 3, 2, *[-1.0] * 8]
    population = shades([*values[:6], 0.55, 0.45, *[1.0] * 8], rewards, range(16))
    assert picks.diverse(population, 0, 2) == [2, 3]


def test_other_ancestors_come_before_farther_pictures():
    population = shades([0.5, 1.0, 0.0, 0.6], [4.0, 3, 2, 1], [0, 0, 0, 1])
    assert picks.diverse(population, 0, 3) == [3, 2, 1]


def test_exact_copies_and_the_dead_are_no_picks():
    assert picks.diverse(shades([0.5, 0.5, 0.5], [3.0, 2, 1], [0, 1, 2]), 0) == []
    assert picks.diverse(shades([0.5, 0.1, 0.9], [3.0, -torch.inf, 1], [0, 1, 2]), 0) == [2]
    assert picks.diverse(shades([0.5], [3.0], [0]), 0) == []


# -- the page -------------------------------------------------------------------------------------------------------------------------


def test_flags_are_shown_counted_and_no_part_of_the_score(tmp_path):
    population = painted(checker=True)
    flagged = int(population.flagged.sum())
    assert 0 < flagged < 32
    text = page(population)
    assert '<span class="flag"' in text
    assert "Parts of the reward" not in text
    assert f"<dt>flagged nsfw</dt><dd>{flagged}<small>of 32</small>" in text
    from viot.report.terminal import summary

    assert f"{flagged} of 32 pictures, by the model's own checker" in summary(population)
    assert "flag" not in page(painted()).partition("</style>")[2]


def test_a_page_of_many_prompts_stays_small():
    few = painted([RED], particles=64, method="importance", size=160)
    names = ("samples", "x0", "rewards", "log_weights", "log_z", "roots")
    many = replace(few, **{n: getattr(few, n).expand(45, *getattr(few, n).shape[1:]) for n in names})
    many = replace(many, ancestors=few.ancestors.expand(-1, 45, -1), config={**few.config, "groups": list(range(45))})
    many = replace(many, unsteered=many.first(4))
    text = page(many)
    assert text.count("<article>") == 45
    # Of each prompt the best, the plain one, four others, and eight folded away.
    assert text.count("<img") == 45 * (1 + 1 + 4 + 8)
    assert len(text) < 6e6
    assert "The 8 heaviest of 64" in text


def test_the_best_of_every_prompt_is_what_the_page_leads_with():
    population = painted()
    best = population.rewards.amax(-1)
    text = page(population)
    from viot.report.words import number

    assert f"<dt>best per prompt</dt><dd>{number(best.mean())}<small>{number(best.max())} the highest" in text
    assert "16 particles for each of 2 prompts" in text
