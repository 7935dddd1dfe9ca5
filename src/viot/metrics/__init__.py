"""Distances between sets of samples, in whatever features they are given, and diversity within one."""

from .distances import frechet_distance, mmd, mode_mass, precision_recall, sliced_wasserstein
from .diversity import cosine, pairwise_distance, vendi
from .front import hypervolume, nondominated
from .text import distinct, ngram_kernel

__all__ = [
    "cosine", "distinct", "frechet_distance", "hypervolume", "mmd", "mode_mass", "ngram_kernel", "nondominated", "pairwise_distance",
    "precision_recall", "sliced_wasserstein", "vendi",
]  # fmt: skip
