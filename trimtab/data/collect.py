"""Data sets that can be made here, by name, of our own worlds, of OGBench and of MuJoCo. Nothing is downloaded.

A data set `NAME` is `NAME.npz` in a folder (`data/` unless another is given), with `NAME.json` beside it, which says
how it was made; OGBench's also have `NAME-val.npz`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trimtab.core import RunError, UsageError
from trimtab.data import collect_ogbench, collect_policy, minari_store
from trimtab.data.write import save_npz, save_record, versions
from trimtab.envs import ogbench, two_route

FOLDER = Path("data")
"""Where data sets are written and looked for by name."""

Tick = Callable[[str, int, int], None]
"""(what is being collected, episodes or rows done, of how many)."""


def names() -> list[str]:
    """The data sets that `make` knows."""
    return [*two_route.VARIANTS, *collect_policy.NAMES, *collect_ogbench.RECIPES]


@dataclass(frozen=True)
class Size:
    """How much is made; None: the data set's own number."""

    episodes: int | None = None
    """training episodes of a scripted set; its validation file has a tenth of it, at least 1."""
    steps: int | None = None
    """training steps of the learner behind a set of trained policies, or behind an ant's legs."""
    rows: int | None = None
    """transitions of such a set."""

    def check(self, name: str) -> None:
        """Raises `UsageError` for a number that is too small, or means nothing for the data set `name`."""
        given = {"episodes": self.episodes, "steps": self.steps, "rows": self.rows}
        meant = ("steps", "rows") if name in collect_policy.NAMES else ("episodes",)
        meant = ("steps", "episodes") if name.startswith("antmaze-") else meant
        if name.endswith("/medium-replay-v0") and self.rows is not None:
            raise UsageError(f"{name} is all that was stored until the medium policy: leave --rows out")
        for label, value in given.items():
            if value is not None and value < 1:
                raise UsageError(f"{label} must be at least 1, got {value}")
            if value is not None and label not in meant:
                raise UsageError(f"{name} has no --{label}: its size is set by {' and '.join(f'--{m}' for m in meant)}")


def make(
    name: str,
    *,
    size: Size = Size(),
    seed: int = 0,
    out: Path = FOLDER,
    command: str = "",
    tick: Tick,
    train: collect_policy.Train | None = None,
) -> list[Path]:
    """Collects the data set `name` and writes its files, each under a temporary name first; returns their paths.

    `command` is noted beside the data. `train` gives the learner behind the data of trained policies and of ants; its
    runs are kept in the folder `runs` of `out`. Raises `UsageError` for an unknown name, naming the nearest, or a bad
    number, and `RunError` if a file cannot be written.
    """
    if name not in names():
        raise UsageError(f"no data set {name!r} can be made: did you mean {_nearest(name)!r}? (trimtab list datasets)")
    size.check(name)
    if seed < 0:
        raise UsageError(f"seed must not be negative, got {seed}")
    try:  # before anything is collected
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error
    more: dict[str, Any] = {}
    if name in collect_policy.NAMES:
        assert train is not None, "data of trained policies need a learner"
        arrays, more = collect_policy.collect(
            name, steps=size.steps, rows=size.rows, seed=seed, runs=out / "runs", train=train, tick=tick
        )
        parts = {name: arrays}
    elif name in two_route.VARIANTS:
        variant = two_route.VARIANTS[name]
        variant = variant if size.episodes is None else replace(variant, episodes=size.episodes)
        parts = {name: two_route.demonstrations(variant, seed)}
        more = {"episodes": {name: variant.episodes}}
        tick(name, variant.episodes, variant.episodes)
    else:
        recipe = collect_ogbench.RECIPES[name]
        whole = recipe.episodes if size.episodes is None else size.episodes
        counts = {name: whole, f"{name}-val": max(1, round(whole / 10))}
        walker = None
        if collect_ogbench.needs_walker(recipe):
            assert train is not None, "an ant's legs need a learner"
            walker, more = collect_policy.walker(steps=size.steps, seed=seed, runs=out / "runs", train=train)
        parts = {
            part: collect_ogbench.collect(
                recipe, split, n, seed, lambda done, of, part=part: tick(part, done, of), walker
            )
            for split, (part, n) in enumerate(counts.items())
        }
        more |= {"episodes": counts}
    record = {"name": name, "command": command, "seed": seed} | more
    record |= {"rows": {part: len(arrays["actions"]) for part, arrays in parts.items()}, "versions": versions()}
    paths = [save_npz(out / f"{part}.npz", arrays) for part, arrays in parts.items()]
    return [*paths, save_record(out / f"{name}.npz", record)]


def _nearest(name: str) -> str:
    return difflib.get_close_matches(name, names(), n=1, cutoff=0.0)[0]


def locate(dataset: str | Path) -> Path:
    """The path of a data set, given as a path, by its name in `data/`, or by its id in Minari's store; absolute.

    A name of one of OGBench's tasks stands for the data set of that task. Raises `UsageError` with the command that
    makes or fetches a data set which is not there.
    """
    path = Path(dataset)
    if path.exists() or path.suffix or path.is_absolute():
        return path.resolve()
    name = ogbench.dataset_of(path.name) if ogbench.is_task(path.name) else path.as_posix()
    places = [FOLDER / f"{name}.npz", FOLDER / f"{name}.hdf5", FOLDER / name]
    places += [minari_store.folder() / name] if minari_store.ID.fullmatch(name) else []
    for place in places:
        if place.is_file() or minari_store.is_dataset(place) or any(place.glob("*.npy")):
            return place.resolve()
    if name in names():
        raise UsageError(f"the data set {name} is not in {FOLDER}/: make it with `trimtab data make {name}`")
    if "/" in name and minari_store.ID.fullmatch(name):
        raise UsageError(
            f"the data set {name} is neither in {FOLDER}/ nor in Minari's store ({minari_store.folder()}): "
            f"fetch it with `minari download {name}`, or make one of `trimtab list datasets`, such as "
            f"{_nearest(name)!r}"
        )
    raise UsageError(
        f"no data set {str(dataset)!r}: give a path, or one of the names of `trimtab list datasets`, "
        f"such as {_nearest(name)!r}"
    )
