"""The examples run as they stand."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("your_*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, capsys):
    runpy.run_path(str(path))["main"]()
    assert "log Z" in capsys.readouterr().out


def test_there_are_examples():
    assert len(EXAMPLES) >= 2
