"""Genealogies by hand, and against what a run carries along."""

import torch
from exact import run

from viot import lineage

# Two selections of one group of four: 0 0 2 3, then 1 1 2 0.
ANCESTORS = torch.tensor([[[0, 0, 2, 3]], [[1, 1, 2, 0]]])


def test_roots_paths_and_survivors_by_hand():
    assert lineage.roots(ANCESTORS)[:, 0].tolist() == [[0, 1, 2, 3], [0, 0, 2, 3], [0, 0, 2, 0]]
    assert lineage.distinct_parents(ANCESTORS)[:, 0].tolist() == [3, 3]
    assert lineage.surviving(ANCESTORS)[:, 0].tolist() == [4, 3, 2]
    # The final four stood at 1, 1, 2, 0 before the last selection, and at 0, 0, 2, 0 before the first.
    assert lineage.paths(ANCESTORS)[:, 0].tolist() == [[0, 0, 2, 0], [1, 1, 2, 0], [0, 1, 2, 3]]


def test_coalescence_by_hand():
    """Of six pairs of final particles, three met by the first generation, one by the second, none at the end."""
    assert torch.allclose(lineage.coalescence(ANCESTORS)[:, 0], torch.tensor([3 / 6, 1 / 6, 0.0], dtype=torch.float64))
    assert lineage.coalescence(torch.zeros(2, 3, 1, dtype=torch.long)).tolist() == [[0.0] * 3] * 3


def test_the_run_carries_the_same_roots():
    for method in ("vasr", "fkd", "fvd"):
        p = run(method, groups=7, particles=16, steps=20, lam=2.0)
        assert p.trace["deaths"].sum() > 0
        assert torch.equal(lineage.roots(p.ancestors)[-1], p.roots)
        assert torch.equal(lineage.surviving(p.ancestors)[-1], p.surviving_lineages)
        assert torch.equal(lineage.distinct_parents(p.ancestors).double(), p.trace["distinct_parents"])
        shared = (p.roots[:, :, None] == p.roots[:, None, :]).double()
        pairs = (shared.sum((1, 2)) - 16) / (16 * 15)
        assert torch.allclose(lineage.coalescence(p.ancestors)[0], pairs), "lines that share their root have met by the start"
