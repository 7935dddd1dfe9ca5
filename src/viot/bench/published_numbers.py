"""Numbers that papers printed, and which tables they may stand in: those of the same model, features, task and budget, and no others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..report.words import count, fixed, listed
from .rows import Row

#: A row's budget is of the published class where one is at most so many times the other.
BUDGETS = 2.0
#: In what tables may differ.
KINDS = ("model", "reward", "features", "number of prompts", "budget")


@dataclass(frozen=True)
class Numbers:
    """A table as it was printed.

    source    paper and table                    task      the task of `viot bench` that it is about
    model     that was steered, and features that answers were compared in, as rows name theirs; words in brackets where none of ours is it
    features  None where nothing is compared in features
    budget    network rows per group; None where it was not printed, and then the numbers compare with nothing
    prompts   how many there were, all of which must have been run; None where the model follows none
    reward    that steered, where the task has one
    columns   keys of the columns that its numbers would stand in
    methods   (mean, spread) by method and column
    spread    what stands behind ±; standard errors it is not. None where nothing stands there
    """

    source: str
    task: str
    model: str
    features: str | None
    columns: tuple[str, ...]
    methods: dict[str, tuple[tuple[float, float | None], ...]] = field(repr=False)
    budget: int | None = None
    prompts: int | None = None
    reward: str | None = None
    spread: str | None = "the standard deviation over classes and seeds"

    def differs(self, row: Row, budget: int | None = None) -> list[str]:
        """In what a row of the same task is of another kind; nothing where they compare. `budget` stands in for the row's."""
        config, rows = row["config"], row["budget"] if budget is None else budget
        prompts, groups = config["model"].get("prompts"), config["groups"]
        run = len(prompts or ()) if groups is None else groups if isinstance(groups, int) else len(groups)
        alike = {
            "model": self.model == config["model"]["name"],
            # What is compared in no features is the same in any.
            "features": self.features is None or self.features == config["reading"].get("features"),
            "reward": self.reward in (None, config["reward"]),
            "number of prompts": self.prompts == (min(run, len(prompts)) if prompts else None),
            "budget": self.budget is not None and max(self.budget, rows) <= BUDGETS * min(self.budget, rows),
        }
        return [what for what in KINDS if not alike[what]]

    def line(self, method: str) -> dict[str, str]:
        """A method's numbers as they were printed, by column."""
        printed = zip(self.columns, self.methods[method], strict=True)
        return {key: fixed(mean, 3) + ("" if spread is None else f" ± {fixed(spread, 3)}") for key, (mean, spread) in printed}


#: Fréchet distance, CMMD, E log r and diversity. Their features were not printed for the first, and are CLIP's for the second and fourth.
_COLUMNS = ("frechet", "cmmd", "reward", "cosine")
_FEATURES = "[a Fréchet distance of unnamed features, and CLIP ViT-L/14 at 336 pixels]"
_MNIST, _CIFAR = "[a network for MNIST at 32 × 32]", "google/ddpm-cifar10-32"
_VASR, _DTS = "arXiv 2604.06779, Table 1", "arXiv 2506.20701, Table 1"
_CLASSES = "the standard deviation over classes"

PUBLISHED: list[Numbers] = [
    Numbers(
        _VASR, "mnist", _MNIST, _FEATURES, _COLUMNS,
        {
            "dps": ((1.008, 4.173), (0.360, 0.236), (-0.167, 0.125), (0.487, 0.054)),
            "fkd": ((0.037, 0.023), (0.163, 0.130), (-0.026, 0.013), (0.457, 0.050)),
            "tds": ((0.101, 0.057), (0.485, 0.390), (-0.013, 0.030), (0.429, 0.053)),
            "das": ((0.030, 0.015), (0.120, 0.076), (-0.023, 0.012), (0.456, 0.052)),
            "dts": ((0.019, 0.002), (0.100, 0.016), (-0.020, 0.001), (0.494, 0.003)),
            "vasr": ((0.015, 0.005), (0.087, 0.043), (-0.020, 0.002), (0.495, 0.092)),
        },
    ),
    Numbers(
        _VASR, "mnist-even-odd", _MNIST, _FEATURES, _COLUMNS,
        {
            "dps": ((1.471, 2.059), (0.449, 0.144), (-0.186, 0.059), (0.491, 0.007)),
            "fkd": ((0.056, 0.022), (0.241, 0.112), (-0.032, 0.013), (0.456, 0.007)),
            "tds": ((0.143, 0.066), (0.785, 0.430), (-0.018, 0.032), (0.430, 0.010)),
            "das": ((0.037, 0.010), (0.159, 0.072), (-0.027, 0.009), (0.457, 0.010)),
            "dts": ((0.014, 0.004), (0.075, 0.029), (-0.015, 0.004), (0.616, 0.053)),
            "vasr": ((0.014, 0.001), (0.084, 0.010), (-0.016, 0.001), (0.616, 0.056)),
        },
    ),
    Numbers(
        _VASR, "cifar10", _CIFAR, _FEATURES, _COLUMNS,
        {
            "dps": ((0.256, 0.060), (1.297, 0.504), (-0.273, 0.110), (0.531, 0.019)),
            "fkd": ((0.241, 0.054), (0.923, 0.294), (-0.181, 0.158), (0.517, 0.025)),
            "tds": ((0.418, 0.175), (2.100, 1.221), (-0.043, 0.035), (0.486, 0.036)),
            "das": ((0.205, 0.043), (0.738, 0.199), (-0.537, 0.236), (0.532, 0.021)),
            "dts": ((0.180, 0.036), (0.744, 0.183), (-0.301, 0.098), (0.540, 0.019)),
            "vasr": ((0.132, 0.026), (0.598, 0.153), (-0.205, 0.099), (0.541, 0.019)),
        },
    ),
    Numbers(
        _DTS, "mnist", _MNIST, _FEATURES, _COLUMNS,
        {
            "dps": ((0.359, 0.227), (0.441, 0.447), (-0.323, 0.286), (0.474, 0.051)),
            "fkd": ((0.060, 0.051), (0.177, 0.142), (-0.002, 0.004), (0.422, 0.040)),
            "tds": ((0.087, 0.035), (0.463, 0.260), (-0.001, 0.001), (0.404, 0.042)),
            "das": ((0.039, 0.017), (0.179, 0.099), (-0.016, 0.016), (0.440, 0.041)),
            "dts": ((0.014, 0.005), (0.068, 0.030), (-0.023, 0.006), (0.452, 0.050)),
        },
        budget=1_000_000, spread=_CLASSES,
    ),
    Numbers(
        _DTS, "mnist-even-odd", _MNIST, _FEATURES, _COLUMNS,
        {
            "dps": ((0.123, 0.031), (0.293, 0.139), (-0.002, 0.001), (0.572, 0.053)),
            "fkd": ((0.027, 0.009), (0.123, 0.113), (-0.003, 0.003), (0.583, 0.084)),
            "tds": ((0.053, 0.010), (0.250, 0.056), (-0.001, 0.000), (0.576, 0.124)),
            "das": ((0.031, 0.002), (0.079, 0.011), (-0.015, 0.019), (0.603, 0.094)),
            "dts": ((0.007, 0.003), (0.036, 0.029), (-0.010, 0.004), (0.597, 0.069)),
        },
        budget=1_000_000, spread=_CLASSES,
    ),
    Numbers(
        _DTS, "cifar10", _CIFAR, _FEATURES, _COLUMNS,
        {
            "dps": ((0.486, 0.121), (2.609, 0.824), (-0.002, 0.001), (0.551, 0.024)),
            "fkd": ((0.313, 0.070), (1.409, 0.445), (-0.102, 0.093), (0.487, 0.045)),
            "tds": ((0.487, 0.112), (2.675, 0.665), (-0.046, 0.055), (0.469, 0.042)),
            "das": ((0.241, 0.037), (0.822, 0.203), (-0.584, 0.200), (0.530, 0.023)),
            "dts": ((0.195, 0.041), (0.745, 0.201), (-0.305, 0.116), (0.542, 0.020)),
        },
        budget=1_000_000, spread=_CLASSES,
    ),
    *[
        # The best ImageReward of each of forty hard prompts of DrawBench, averaged; which forty was not printed.
        Numbers(
            "arXiv 2506.20701, Table 3", "drawbench", "stable-diffusion-v1-5/stable-diffusion-v1-5", None, ("pick",),
            {"dts": ((dts, None),), "dts-star": ((star, None),)}, budget=budget, prompts=40, reward="imagereward", spread=None,
        )
        for budget, dts, star in (
            (1_000, 0.774, 0.825), (2_500, 1.025, 1.086), (5_000, 1.064, 1.254), (10_000, 1.112, 1.342), (25_000, 1.214, 1.459),
            (50_000, 1.238, 1.552),
        )
    ],
]  # fmt: skip


def beside(rows: list[Row]) -> list[Numbers]:
    """The printed tables that these rows, of one budget and strength, may be read beside: of one source that of the nearest budget."""
    found = [numbers for numbers in PUBLISHED if numbers.task == rows[0]["task"] and all(not numbers.differs(row) for row in rows)]
    nearest: dict[str, Numbers] = {}
    for numbers in sorted(found, key=lambda numbers: abs(math.log(numbers.budget or 1) - math.log(rows[0]["budget"])), reverse=True):
        nearest[numbers.source] = numbers
    return [numbers for numbers in found if nearest[numbers.source] is numbers]


def lines(rows: list[Row], keys: list[str]) -> list[list[str]]:
    """Their lines for the table of those rows, with – in the columns (`keys`) that were not printed."""
    return [
        [
            f"{method}, published ({numbers.source}, {count(numbers.budget or 0)} rows)",
            *[numbers.line(method).get(key, "–") for key in keys],
        ]
        for numbers in beside(rows)
        for method in numbers.methods
    ]


def remark(rows: list[Row]) -> str:
    """Sentences on the printed tables that there are for this task: what ± is in those that are shown, and why the others are not."""
    known = [numbers for numbers in PUBLISHED if numbers.task == rows[0]["task"]]
    budgets = sorted({row["budget"] for row in rows})
    said, hidden, why = [], [], set()
    for source in dict.fromkeys(numbers.source for numbers in known):
        mine = [numbers for numbers in known if numbers.source == source]
        # Of several budgets, printed and ours, the pair that is most alike.
        least = min((numbers.differs(rows[0], budget) for numbers in mine for budget in budgets), key=len)
        if least:
            hidden.append(source)
            why |= set(least)
            continue
        spread = f"; their ± is {mine[0].spread}" if mine[0].spread else ""
        said.append(f"Lines marked “published” are {source}, as printed{spread}.")
    if hidden:
        other = listed([f"another {what}" if what != "features" else "other features" for what in KINDS if what in why])
        said.append(
            f"Published numbers for this task exist ({listed(hidden)}), but were made with {other}: they do not compare with these and are "
            f"not shown."
        )
    return " ".join(said)
