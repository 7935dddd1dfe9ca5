"""How diverse a set of texts is, against what can be counted by hand."""

import math

import pytest
import torch

from viot.metrics.text import cosine, distinct, ngram_kernel, ngrams, vendi


def test_distinct_counts():
    texts = ["the cat sat", "The cat ran!"]
    # the cat sat the cat ran ! · the cat | cat sat | the cat | cat ran | ran !
    assert distinct(texts) == 5 / 7
    assert distinct(texts, 2) == 4 / 5
    assert distinct(texts, 3) == 3 / 3
    assert distinct(["anna", "ann"], 2, characters=True) == 3 / 5, "an nn na an nn"
    assert distinct(["one"], 2) == 0.0
    assert distinct(["a b c d"] * 10, 2) == 3 / 30, "copies are no news"
    assert ngrams("a b c", 2) == [("a", "b"), ("b", "c")]


def test_vendi_counts_what_is_different():
    for n in (1, 2, 7):
        assert vendi(torch.ones(n, n)) == pytest.approx(1.0), "copies"
        assert vendi(torch.eye(n)) == pytest.approx(n), "nothing alike"
    two = torch.block_diag(torch.ones(3, 3), torch.ones(1, 1))
    shares = torch.tensor([0.75, 0.25])
    assert vendi(two) == pytest.approx(torch.special.entr(shares).sum().exp().item()), "two kinds, three to one"
    # The eigenvalues of [[1, c], [c, 1]] / 2 are (1 ± c) / 2.
    c = 0.6
    assert vendi(torch.tensor([[1, c], [c, 1]])) == pytest.approx(math.exp(-sum(p * math.log(p) for p in ((1 + c) / 2, (1 - c) / 2))))


def test_vendi_with_weights_is_vendi_of_copies():
    """A weight of 2 is the same as being there twice; equal weights are none; and a wrong weight shows."""
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([2.0, 1.0, 3.0, 0.0])
    copies = features[[0, 0, 1, 2, 2, 2]]
    assert vendi(cosine(features), weights) == pytest.approx(vendi(cosine(copies)))
    assert vendi(cosine(features), weights) != pytest.approx(vendi(cosine(features)), rel=1e-3)
    assert vendi(cosine(features), torch.full((4,), 0.1)) == pytest.approx(vendi(cosine(features)))
    assert vendi(torch.eye(3), torch.tensor([0.0, 1.0, 0.0])) == pytest.approx(1.0)


def test_the_kernel_of_ngrams():
    kernel = ngram_kernel(["a b a", "a b", "c", "", " "])
    # Counts (2, 1, 0), (1, 1, 0), (0, 0, 1); two texts without words.
    assert kernel[0, 1].item() == pytest.approx(3 / math.sqrt(5 * 2))
    assert kernel[0, 2] == kernel[2, 3] == 0
    assert kernel[3, 4] == 1
    assert torch.equal(kernel.diagonal(), torch.ones(5, dtype=torch.float64))
    assert vendi(ngram_kernel(["same words", "same words", "same words"], 2)) == pytest.approx(1.0)
    assert vendi(ngram_kernel(["ab", "cd", "ef"], characters=True)) == pytest.approx(3.0)
    assert vendi(ngram_kernel(["ab", "ba"], 2, characters=True)) == pytest.approx(2.0), "the same letters, other pairs"


def test_bad_input():
    for bad in ("a text", [1, 2], torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="distinct scores"):
            distinct(bad)
    with pytest.raises(ValueError, match="n ≥ 1"):
        distinct(["a"], 0)
    for bad, message in (
        (torch.zeros(2, 3), r"must be \(m, m\)"),
        (torch.tensor([[1.0, 0.5], [0.2, 1.0]]), "symmetric"),
        (torch.full((2, 2), float("nan")), "finite"),
        (2 * torch.eye(2), "ones on its diagonal"),
        (torch.tensor([[1.0, 3.0], [3.0, 1.0]]), "eigenvalue -2"),
    ):
        with pytest.raises(ValueError, match=message):
            vendi(bad)
    for weights, message in (
        (torch.ones(3), "as many weights"),
        (torch.tensor([1.0, -1.0]), "finite and ≥ 0"),
        (torch.zeros(2), "not all 0"),
    ):
        with pytest.raises(ValueError, match=message):
            vendi(torch.eye(2), weights)
    with pytest.raises(ValueError, match=r"must be \(m, d\)"):
        cosine(torch.zeros(3))
