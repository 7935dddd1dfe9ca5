"""MNIST as tensors: from a folder of idx.gz files, or from its public mirror when the folder has none."""

from __future__ import annotations

import gzip
import urllib.request
from pathlib import Path

import torch
from torch import Tensor

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {
    ("train", "images"): "train-images-idx3-ubyte.gz",
    ("train", "labels"): "train-labels-idx1-ubyte.gz",
    ("test", "images"): "t10k-images-idx3-ubyte.gz",
    ("test", "labels"): "t10k-labels-idx1-ubyte.gz",
}


def _read(folder: Path, split: str, kind: str) -> Tensor:
    path = folder / FILES[split, kind]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        urllib.request.urlretrieve(MIRROR + path.name, partial)
        partial.rename(path)
    raw = gzip.decompress(path.read_bytes())
    n_dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(n_dims)]
    return torch.frombuffer(bytearray(raw[4 + 4 * n_dims :]), dtype=torch.uint8).reshape(shape)


def load_mnist(folder: str | Path, split: str = "train") -> tuple[Tensor, Tensor]:
    """Images float32 (n, 1, 28, 28) in [0, 1] and labels int64 (n,)."""
    folder = Path(folder)
    images = _read(folder, split, "images")[:, None].float() / 255
    return images, _read(folder, split, "labels").long()
