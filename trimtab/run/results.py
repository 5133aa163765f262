"""What run folders hold, and the statistics over them: the matter of a report, without its form.

Runs are read from their folders and from nothing else, so a run may be finished, stopped or still training. They are
grouped by task (data set, else environment) and agent; agents whose configurations differ are kept apart. The score of
a run is the mean return of its last evaluation in `eval.csv` (without one, of `evaluation.json`); a run whose last
evaluation is nan or inf has no score, and says so.
"""

import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.run.statistics import Aggregate, Estimate, aggregate, curve_band, probability_of_improvement

Series = tuple[np.ndarray, np.ndarray]
"""Steps, increasing, and the value at each of them; both (points,)."""

PALETTE = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca9a04", "#06b6d4", "#ec4899", "#84a916", "#8b7355")
MAX_POINTS = 300  # of a learning curve; longer ones are averaged over bins


class ReportError(ValueError):
    """A report cannot be made; the message is one line that names the fix."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder holds. Missing files leave empty fields."""

    path: Path
    config: dict[str, Any]
    done: bool
    metrics: dict[str, Series]
    returns: Series
    """mean return of the evaluation episodes at each evaluated step."""
    successes: Series
    """mean success of the same episodes, where the environment tells it."""
    diverged: dict[str, int]
    """metrics, or "return" of evaluations, that were nan or inf, and the first step at which they were."""
    lost: bool
    """whether the last evaluation gave no finite return."""
    evaluation: dict[str, Any]
    diagnosis: dict[str, Any]
    machine: dict[str, Any]
    command: str
    videos: tuple[Path, ...]
    failure: str = ""
    """why it diverged and was given up, if it was."""

    @property
    def empty(self) -> bool:
        return not (self.metrics or self.diverged or len(self.returns[0]) or self.evaluation)

    @property
    def task(self) -> str:
        return str(self.config.get("dataset") or self.config.get("env"))

    @property
    def total(self) -> float:
        """The steps this run is meant to take; nan if its config does not say."""
        if self.config.get("dataset"):
            return self._before_online + (finite(self.config.get("online_steps")) or 0.0) or math.nan
        return finite(self.config.get("steps")) or math.nan

    @property
    def _before_online(self) -> float:
        """Updates on the data set; those of an agent's proxy come first and have no flag of their own."""
        proxy = finite((self.config.get("agent_config") or {}).get("proxy_steps"))
        return (proxy or 0.0) + (finite(self.config.get("offline_steps")) or 0.0)

    @property
    def switch(self) -> int | None:
        """The step at which the run goes over from its data set to the environment; None if it does not."""
        both = self.config.get("dataset") and finite(self.config.get("online_steps")) and self._before_online
        return int(self._before_online) if both else None

    @property
    def waits_online(self) -> int:
        """Steps after the switch without an update: what symmetric batches wait for, and agents that know their phases;
        a multiple of the number of environments."""
        config = self.config.get("agent_config") or {}
        steps = finite(config.get("learning_starts")) or 0.0
        waits = self.config.get("sampling") == "symmetric" or "phase" in config
        num_envs = int(finite(self.config.get("num_envs")) or 1)
        return -(-int(steps) // num_envs) * num_envs if waits else 0

    def around_switch(self, series: Series) -> tuple[float, float] | None:
        """The last value of a series before the switch and the first one after it at which the agent had learnt online,
        where there are both."""
        steps, values = series
        if self.switch is None:
            return None
        before, after = values[steps <= self.switch], values[steps > self.switch + self.waits_online]
        return (float(before[-1]), float(after[0])) if len(before) and len(after) else None

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def step(self) -> int:
        """The last step that any file mentions."""
        return int(max((steps[-1] for steps, _ in (self.returns, *self.metrics.values()) if len(steps)), default=0))

    @property
    def last(self) -> float | None:
        if self.lost:
            return None
        return float(self.returns[1][-1]) if len(self.returns[0]) else finite(self.evaluation.get("mean"))

    @property
    def best(self) -> float | None:
        if self.lost:
            return None
        return float(self.returns[1].max()) if len(self.returns[0]) else self.last


@dataclass(frozen=True, eq=False)
class Band:
    """A curve over runs, all (points,): the interquartile mean and its interval, which is nan for a single run."""

    steps: np.ndarray
    iqm: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one agent, with one configuration, on one task: the seeds over which statistics are taken."""

    agent: str
    colour: str
    runs: tuple[Run, ...]
    scores: tuple[float, ...]
    last: Aggregate | None
    best: Aggregate | None
    curves: tuple[Series, ...]
    band: Band | None
    success: Band | None


@dataclass(frozen=True, eq=False)
class Task:
    """An environment or a data set, and the agents that were tried on it."""

    name: str
    axis: str
    """what the steps count."""
    meaning: str
    """what the learning curves are made of."""
    groups: tuple[Group, ...]
    pairs: tuple[tuple[Group, Group, Estimate], ...]
    """P(first > second) for each pair of agents that both have scores, the higher IQM first."""
    switches: tuple[int, ...] = ()
    """the steps at which runs go over from a data set to the environment."""
    references: tuple[float, float] | None = None
    """returns of a random and of an expert policy, if all runs have them from their data set, and the same."""

    def normalized(self, estimate: Estimate) -> Estimate | None:
        """The normalised score, 0 at the random return and 100 at the expert's, and its interval."""
        if self.references is None:
            return None
        random, expert = self.references
        scale = lambda value: 100.0 * (value - random) / (expert - random)
        return Estimate(scale(estimate.value), scale(estimate.low), scale(estimate.high))


def expand(given: Sequence[Path]) -> list[Path]:
    """The runs that are meant: the folders given, or the runs below one that is none itself. Raises `ReportError`."""
    if not given:
        raise ReportError("no runs given: name run folders, or a folder that contains some, as `trimtab report runs`")
    if missing := [str(path) for path in given if not path.is_dir()]:
        raise ReportError(f"no such folder: {', '.join(missing)}")
    found = [(path, list(_runs_below(path))) for path in given]
    if wrong := [str(path) for path, below in found if not below]:
        raise ReportError(f"not a run, and no run below it (a run has a config.json): {', '.join(wrong)}")
    return list({path.resolve(): path for _, below in found for path in below}.values())


def _runs_below(folder: Path) -> Iterator[Path]:
    if (folder / "config.json").is_file():  # and no deeper: checkpoints may hold a config.json of their own
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink():
            yield from _runs_below(child)


def read_run(folder: Path) -> Run:
    """Reads one run folder. Raises `ReportError` with file and line where something in it cannot be read."""
    config = _read_json(folder / "config.json")
    if not config.get("agent") or not (config.get("env") or config.get("dataset")):
        raise ReportError(f"{folder / 'config.json'} must name an agent, and an env or a dataset: is this a run?")
    done = (folder / "DONE").exists()

    points: dict[str, dict[float, float]] = {}
    for name, step, value in _read_csv(folder / "metrics.csv", ("name", "step", "value"), _metric, done):
        points.setdefault(name, {})[step] = value  # a resumed run logs some steps again: the later row counts
    metrics = {name: as_series(row.items()) for name, row in sorted(points.items())}

    episodes: dict[float, dict[float, tuple[float, float]]] = {}
    for step, episode, *values in _read_csv(
        folder / "eval.csv", ("step", "episode", "return", "success"), _episode, done
    ):
        episodes.setdefault(step, {})[episode] = (values[0], values[1])
    means = {step: np.mean(list(rows.values()), axis=0) for step, rows in episodes.items()}
    broken = {name: [step for step, value in row.items() if not math.isfinite(value)] for name, row in points.items()}
    broken["return"] = [step for step, mean in means.items() if not math.isfinite(mean[0])]

    command, failed = folder / "command.txt", folder / "FAILED"
    return Run(
        path=folder,
        config=config,
        done=done,
        metrics={name: series for name, series in metrics.items() if len(series[0])},
        returns=as_series((step, mean[0]) for step, mean in means.items()),
        successes=as_series((step, mean[1]) for step, mean in means.items()),
        diverged={name: int(min(steps)) for name, steps in broken.items() if steps},
        lost=bool(means) and max(means) in broken["return"],
        evaluation=_read_json(folder / "evaluation.json", required=False),
        diagnosis=_read_json(folder / "diagnose.json", required=False),
        machine=_read_json(folder / "env.json", required=False),
        command=command.read_text(encoding="utf-8", errors="replace").strip() if command.is_file() else "",
        videos=tuple(sorted((folder / "videos").glob("*.mp4"), key=_natural)),
        failure=failed.read_text(encoding="utf-8", errors="replace").strip() if failed.is_file() else "",
    )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts step_5000.mp4 before step_10000.mp4."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _read_json(path: Path, required: bool = True) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read {path}: {error}; repair or remove it") from error
    if not isinstance(content, dict):
        raise ReportError(f"cannot read {path}: it holds no JSON object; repair or remove it")
    return content


def _read_csv(path: Path, columns: tuple[str, ...], parse: Callable[..., tuple], done: bool) -> Iterator[tuple]:
    """`parse(*cells)` of the named columns of each row. Only `success` may be missing; it is then empty."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read {path}: {error}; repair or remove it") from error
    # The last line of a run that is training, or was killed, may be half-written: it has no newline yet.
    if not done or lines[-1] == "":
        lines.pop()
    if not lines:
        return
    header = lines[0].split(",")
    for column in columns:
        if column not in header and column != "success":
            raise ReportError(f"{path}, line 1: no column {column!r} in the header {lines[0]!r}; repair or remove it")
    where = [header.index(column) if column in header else None for column in columns]
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        try:
            cells = next(csv.reader([line]))
            if len(cells) != len(header):
                raise ValueError(f"{len(cells)} fields where the header has {len(header)}")
            row = parse(*("" if index is None else cells[index] for index in where))
        except (ValueError, csv.Error) as error:
            raise ReportError(f"{path}, line {number}: {error}; repair or remove the line") from error
        yield row


def _metric(name: str, step: str, value: str) -> tuple[str, float, float]:
    return name, float(step), float(value)


def _episode(step: str, episode: str, value: str, success: str) -> tuple[float, float, float, float]:
    words = {"": math.nan, "true": 1.0, "false": 0.0}
    flag = words[success.lower()] if success.lower() in words else float(success)
    return float(step), float(episode), float(value), flag


def as_series(points: Iterable[tuple[float, float]]) -> Series:
    """Points in the order of their steps, without those that are nan or inf."""
    pairs = sorted((float(step), float(value)) for step, value in points if math.isfinite(value))
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def thin(series: Series, points: int) -> Series:
    """At most so many points: the means over bins of neighbours."""
    steps, values = series
    if len(steps) <= points:
        return series
    edges = np.linspace(0, len(steps), points + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(steps, edges[:-1]) / counts, np.add.reduceat(values, edges[:-1]) / counts


def finite(value: Any) -> float | None:
    """A finite number, or None for whatever else a JSON file holds."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


EDGE_WARN = 0.05
"""Share of a polynomial density in its outermost cells above which its quadrature is not trusted (MePoly)."""


def verdicts(run: Run) -> list[dict[str, str]]:
    """The verdicts of `trimtab diagnose`, and those on what was logged: name, level (ok, warn, bad) and text."""
    found = [verdict for verdict in run.diagnosis.get("verdicts") or [] if isinstance(verdict, dict)]
    diagnosed = [{key: str(verdict.get(key, "")) for key in ("name", "level", "text")} for verdict in found]
    last = {name: float(values[-1]) for name, (_, values) in run.metrics.items() if len(values)}
    known = {verdict["name"] for verdict in diagnosed}
    return diagnosed + [verdict for verdict in logged_verdicts(last) if verdict["name"] not in known]


def logged_verdicts(last: Mapping[str, float]) -> list[dict[str, str]]:
    """What the newest logged values mean, one line each; nothing where there is nothing to say."""
    found = []
    for name in ("train/edge", "train/actor_edge"):
        if last.get(name, 0.0) > EDGE_WARN:
            share = f"{last[name]:.0%} of the polynomial density lies in the outermost cells"
            text = f"{name}: {share}, where its quadrature may be off: raise points or ent_coef, or lower natural_bound"
            found.append({"name": name, "level": "warn", "text": text})
    return found


def group_runs(runs: Sequence[Run]) -> list[Task]:
    """The runs by task and agent, with the statistics over each group. A second or so a group."""
    by_task: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        by_task.setdefault(run.task, {}).setdefault(str(run.config["agent"]), []).append(run)
    labelled = {
        task: {label: found for agent in sorted(agents) for label, found in _variants(agent, agents[agent]).items()}
        for task, agents in sorted(by_task.items())
    }
    labels = sorted({label for found in labelled.values() for label in found})
    colours = {label: PALETTE[index % len(PALETTE)] for index, label in enumerate(labels)}  # the same on every task
    tasks = []
    for key, found in labelled.items():
        # A data set may be a path on this machine: its last part will do, if it is the only one of that name.
        short = [Path(other).stem if Path(other).is_absolute() else other for other in labelled]
        name = Path(key).stem if Path(key).is_absolute() and short.count(Path(key).stem) == 1 else key
        members = [run for group in found.values() for run in group]
        meaning, curve = _curves(members)
        groups = tuple(_group(label, colours[label], group, curve) for label, group in found.items())
        level = {group.agent: group.last.iqm.value for group in groups if group.last}
        scored = sorted((group for group in groups if group.agent in level), key=lambda group: -level[group.agent])
        pairs = tuple(
            (a, b, probability_of_improvement(np.array(a.scores), np.array(b.scores)))
            for a, b in itertools.combinations(scored, 2)
        )
        switches = tuple(sorted({run.switch for run in members if run.switch is not None}))
        tasks.append(Task(name, _axis(members), meaning, groups, pairs, switches, _references(members)))
    return tasks


def _references(runs: Sequence[Run]) -> tuple[float, float] | None:
    found = {tuple(run.config.get("references") or ()) for run in runs}
    pair = found.pop()
    return (float(pair[0]), float(pair[1])) if not found and len(pair) == 2 and pair[1] != pair[0] else None


def _variants(agent: str, runs: list[Run]) -> dict[str, list[Run]]:
    """Runs of one agent by configuration, under labels that tell what differs: they are no seeds of one another."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(run.config.get("agent_config") or {}, sort_keys=True), []).append(run)
    if len(found) == 1:
        return {agent: runs}
    configs = {key: json.loads(key) for key in found}
    names = sorted({name for config in configs.values() for name in config})
    differ = [name for name in names if len({json.dumps(config.get(name)) for config in configs.values()}) > 1]
    labelled: dict[str, list[Run]] = {}
    for key, group in found.items():
        label = f"{agent} ({', '.join(f'{name}={configs[key].get(name)}' for name in differ[:3])})"
        labelled[label if label not in labelled else f"{label} #{len(labelled) + 1}"] = group
    return labelled


def _curves(runs: Sequence[Run]) -> tuple[str, Callable[[Run], Series]]:
    """What the learning curves of a task are made of, and the one of each run: evaluations, if some run has them."""
    none = (np.zeros(0), np.zeros(0))
    if any(len(run.returns[0]) for run in runs):
        return "evaluation episodes", lambda run: run.returns
    if any("eval/mean_reward" in run.metrics for run in runs):
        return "evaluation episodes", lambda run: run.metrics.get("eval/mean_reward", none)
    return "training episodes", lambda run: thin(run.metrics.get("rollout/ep_rew_mean", none), MAX_POINTS)


def _group(label: str, colour: str, runs: list[Run], curve: Callable[[Run], Series]) -> Group:
    runs = sorted(runs, key=lambda run: (str(run.seed).zfill(8), str(run.path)))
    scores = tuple(run.last for run in runs if run.last is not None)
    best = [run.best for run in runs if run.best is not None]
    curves = tuple(series for series in map(curve, runs) if len(series[0]))
    return Group(
        agent=label,
        colour=colour,
        runs=tuple(runs),
        scores=scores,
        last=aggregate(np.array(scores)) if scores else None,
        best=aggregate(np.array(best)) if best else None,
        curves=curves,
        band=_band(curves),
        success=_band([run.successes for run in runs if len(run.successes[0])]),
    )


def _band(curves: Sequence[Series]) -> Band | None:
    """The band over the steps that all curves cover; None where there are no such steps."""
    if not curves:
        return None
    first, last = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    if not len(grid):
        return None
    if len(grid) > MAX_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_POINTS).astype(int)]
    return Band(grid, *curve_band(np.stack([np.interp(grid, *curve) for curve in curves]), reps=1000))


def _axis(runs: Sequence[Run]) -> str:
    named = {run.config["axis"] for run in runs if "axis" in run.config}
    if len(named) == 1:
        return str(named.pop())
    offline = {bool(run.config.get("dataset")) for run in runs}
    if offline == {False}:
        return "environment steps"
    mixed = len(offline) > 1 or any(run.config.get("online_steps") for run in runs)
    return "steps" if mixed else "gradient steps"
