"""Gradient coupling and its cure by classification (arXiv:2509.23870).

1. DoorWorld-1 (100 steps of two methods at smoke scale): GRPO learns what is right at open doors and does it at locked
   ones too; with the classification loss it does not, and with labels by lot, or with a classifier that shares nothing
   with the policy, it does. Ten seeds at small scale, three of the controls: without the entropy's weight one run in
   ten ends in another trap, so that three would say little. `trimtab/language/testbeds.py`.
2. DoorWorld-N (small and paper): corridors, through the trainer's rollout function.
3. Paper scale also writes `commands.txt`: settings for a GPU and real models.
"""

from pathlib import Path
from typing import Any

from trimtab.language import require
from trimtab.papers.recipe import Results, plot_panels, run_beds
from trimtab.run.folder import replace_text

DOORS = "DoorWorld-1, unseen rooms and objects"
CORRIDOR = "DoorWorld-N, six unseen rooms"

FEW: dict[str, dict[str, Any]] = {"GRPO": {}, "GRPO + GCD": dict(coef=0.5)}
METHODS: dict[str, dict[str, Any]] = {
    **FEW,
    "GRPO + GCD, labels by lot": dict(coef=0.5, shuffled=True),
    "GRPO + GCD, separate classifier": dict(coef=0.5, separate=True),
    "GRPO + GCD, lambda 0.1": dict(coef=0.1),
    "GRPO + GCD, lambda 1": dict(coef=1.0),
    "GRPO, no entropy": dict(entropy=0.0),
    "GRPO + GCD, no entropy": dict(coef=0.5, entropy=0.0),
    "GRPO, entropy 0.03": dict(entropy=0.03),
}
MAIN = (*FEW, "GRPO + GCD, lambda 0.1", "GRPO, no entropy", "GRPO + GCD, no entropy")
TEN = tuple(range(10))
"""Seeds of `MAIN`."""

COUPLED = (
    ("GRPO", "hidden_cosine, step 100", 0.85, True),
    ("GRPO + GCD", "hidden_cosine, step 100", 0.3, False),
    ("GRPO", "gradient_cosine, step 100", 0.5, True),
    ("GRPO + GCD", "gradient_cosine, step 100", 0.1, False),
)
LEARNT = (
    ("GRPO", "go_locked, step 300", 0.8, True),
    ("GRPO", "minority, step 300", 0.2, False),
    ("GRPO + GCD", "minority, step 300", 0.9, True),
    ("GRPO + GCD", "right_open, step 300", 0.97, True),
    ("GRPO + GCD, labels by lot", "minority, step 300", 0.3, False),
    ("GRPO + GCD, separate classifier", "minority, step 300", 0.3, False),
    ("GRPO + GCD, separate classifier", "judged, step 300", 0.9, True),
)

BEHAVIOUR = ("right_open", "right_key", "right_nokey", "go_locked")
COSINES = ("hidden_cosine", "gradient_cosine")
AT = {
    **dict.fromkeys((*BEHAVIOUR, "minority", "judged"), (40, 100, 200, 300, 400)),
    "hidden_cosine": (0, 40, 60, 100, 200),
    "gradient_cosine": (0, 40, 80, 100, 200),
}
"""Metric -> steps at which it is reported, as far as a run goes."""

SOURCE = "a prototype of ours, seeds 0 1 2"
FOUND: dict[str, dict[int, tuple[float | str, ...]]] = {
    "GRPO": {
        40: (0.99, 0.0, 0.0, 0.99),
        100: (1.0, 0.0, 0.0, 0.99),
        200: (1.0, 0.0, 0.0, 1.0),
        400: (1.0, 0.0, 0.0, 1.0),
    },
    "GRPO + GCD": {
        40: ("0.99 0.98 0.98", "0.01 0.01 0.06", "0.01 0.01 0.02", "0.97 0.98 0.92"),
        100: ("1 0.99 0.99", "0.80 0.62 0.85", "0.72 0.30 0.14", "0.01 0.05 0.02"),
        200: (1.0, "0.99 0.99 0.97", "0.99 0.98 0.99", "0 0 0.01"),
        400: (1.0, "1 0.99 0.99", "1 0.99 0.99", 0.0),
    },
}
"""Step -> `BEHAVIOUR` in the prototype. With labels by lot it was as GRPO."""

LIKE: dict[tuple[str, str], dict[int, float]] = {
    ("GRPO", "hidden_cosine"): {0: 0.81, 40: 0.96, 200: 0.94},
    ("GRPO + GCD", "hidden_cosine"): {0: 0.81, 40: 0.76, 60: -0.22, 100: -0.51},
    ("GRPO", "gradient_cosine"): {0: 0.71, 40: 0.82, 200: 0.66},
    ("GRPO + GCD", "gradient_cosine"): {0: 0.71, 40: 0.20, 80: -0.16},
}
"""(Method, metric) -> step -> the cosine in the prototype."""

COMMANDS = """\
# ALFWorld's games must be fetched; ScienceWorld's simulator comes with its package (pip install scienceworld, Java 17).
trimtab language train grpo --model MODEL --algorithm gcd --coef 0.5 --labeler outcome --env science-world:boil \\
    --max-turns 30 --max-action-tokens 32 --max-completion-length 4096 --num-generations 8 --batch-size 8 \\
    --accumulation 16 --learning-rate 1e-6 --steps 150
# Without the classification loss, for comparison.
trimtab language train grpo --model MODEL --env science-world:boil --max-turns 30 --max-action-tokens 32 \\
    --max-completion-length 4096 --num-generations 8 --batch-size 8 --accumulation 16 --learning-rate 1e-6 --steps 150
"""


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale."""
    require()
    results = Results("gradient-coupling", scale)
    few = {"smoke": (0,), "small": (0, 1, 2), "paper": TEN}[scale]
    if scale == "smoke":
        doors(results, {name: few for name in FEW}, out, steps=100)
    else:
        doors(results, {name: TEN if name in MAIN else few for name in METHODS}, out)
        judge(results, LEARNT)
        corridors(results, few, out)
    judge(results, COUPLED)
    if scale == "paper":
        replace_text(out / "commands.txt", COMMANDS)
    claim = "classification beside acting lowers coupling; success rises, most out of domain"
    results.anchor(DOORS, "paper", "claim", claim, "arXiv:2509.23870, abstract")
    return results


def doors(results: Results, seeds: dict[str, tuple[int, ...]], out: Path, steps: int = 400) -> None:
    """What became of the decisions by some steps, and of the cosines. `seeds`: of each method; all are reported."""
    from trimtab.language.testbeds import Doors, door_world

    settings = {
        (name, seed): Doors(seed=seed, steps=steps, **METHODS[name]) for name, some in seeds.items() for seed in some
    }
    found = run_beds("doors", door_world, settings, out)
    for metric, marks in AT.items():
        for at in (mark for mark in marks if mark <= steps):
            for (name, seed), curves in found.items():
                if metric in curves:
                    value = curves[metric][curves["step"].index(float(at))]
                    results.add(DOORS, name, seed, f"{metric}, step {at}", value)
    for name, rows in FOUND.items():
        for at, row in rows.items():
            for metric, figure in zip(BEHAVIOUR, row, strict=True):
                if at <= steps:
                    results.anchor(DOORS, name, f"{metric}, step {at}", figure, SOURCE)
    for (name, metric), figures in LIKE.items():
        for at, figure in figures.items():
            if at <= steps:
                results.anchor(DOORS, name, f"{metric}, step {at}", figure, SOURCE)
    plot_panels(found, ("minority", "go_locked", *COSINES), out / "doors.png")


def judge(results: Results, claims: tuple[tuple[str, str, float, bool], ...]) -> None:
    """Holds the means over seeds against `claims`: method, metric, threshold, and whether it must lie above."""
    for method, metric, threshold, above in claims:
        value = mean(results, DOORS, method, metric)
        name = f"{method}: {metric} {'above' if above else 'below'}"
        results.check(name, value > threshold if above else value < threshold, value, threshold)


def corridors(results: Results, seeds: tuple[int, ...], out: Path) -> None:
    """Success and bumps after training, every seed reported."""
    from trimtab.language.testbeds import Corridor, corridor

    methods = {"GRPO": 0.0, "GRPO + GCD": 0.5, "GRPO + GCD, lambda 0.1": 0.1}
    settings = {(name, seed): Corridor(coef=coef, seed=seed) for name, coef in methods.items() for seed in seeds}
    found = run_beds("corridors", corridor, settings, out)
    for (name, seed), curves in found.items():
        for metric in ("success", "bumps"):
            for at in (100.0, 400.0):
                value = curves[metric][curves["step"].index(at)]
                results.add(CORRIDOR, name, seed, f"{metric}, step {at:g}", value)
    plot_panels(found, ("success", "bumps"), out / "corridors.png")
    last = "success, step 400"
    gain = mean(results, CORRIDOR, "GRPO + GCD", last) - mean(results, CORRIDOR, "GRPO", last)
    results.check("DoorWorld-N: gain in success by GCD", gain > 0.2, gain, 0.2)


def mean(results: Results, setting: str, method: str, metric: str) -> float:
    """Over seeds."""
    values = results.values(setting, method, metric)
    return sum(values) / len(values)
