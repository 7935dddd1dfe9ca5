import sys
from pathlib import Path

import pytest
import torch

from viot.sample import Run

sys.path.insert(0, str(Path(__file__).parent))
# Small tensors: threads only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture
def runs(monkeypatch):
    """The methods that were run, in order."""
    made, finish = [], Run.finish
    monkeypatch.setattr(Run, "finish", lambda self, **k: (made.append(self.config["method"]["name"]), finish(self, **k))[1])
    return made
