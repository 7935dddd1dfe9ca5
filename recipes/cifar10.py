"""CIFAR-10 as tensors: from a folder of npz or of the published binary files, or from its authors' page when the folder has neither."""

from __future__ import annotations

import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PAGE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


def _download(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "cifar-10-binary.part"
    urllib.request.urlretrieve(PAGE, partial)
    with tarfile.open(partial) as archive:
        for member in archive:
            name = Path(member.name).name
            data = archive.extractfile(member) if name.endswith(".bin") else None
            if data is not None:
                (folder / name).write_bytes(data.read())
    partial.unlink()


def load_cifar10(folder: str | Path, split: str = "train", size: int = 32) -> tuple[Tensor, Tensor]:
    """Images float32 (n, 3, size, size) in [0, 1], averaged over areas where size < 32, and labels int64 (n,)."""
    folder = Path(folder)
    arrays = [np.load(path) for path in sorted(folder.glob(f"{split}*.npz"))]
    if arrays:
        images = torch.from_numpy(np.concatenate([a["images"] for a in arrays])).permute(0, 3, 1, 2)
        labels = torch.from_numpy(np.concatenate([a["labels"] for a in arrays])).long()
    else:
        if not all((folder / name).exists() for name in FILES[split]):
            _download(folder)
        # A row of the binary files is the label and the image's three colour planes.
        rows = torch.cat([torch.frombuffer(bytearray((folder / f).read_bytes()), dtype=torch.uint8) for f in FILES[split]]).view(-1, 3073)
        images, labels = rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()
    return torch.cat([F.interpolate(part.float() / 255, size=(size, size), mode="area") for part in images.split(5000)]), labels
