"""One page about a set of runs: `report.html`, which needs nothing but itself, and `report.json` with the same figures.

Runs are read from their folders and from nothing else, so a run may be finished, stopped or still training. They are
grouped by task (data set, else environment) and agent; agents whose configurations differ are kept apart. The score of
a run is the mean return of its last evaluation in `eval.csv` (without one, of `evaluation.json`); the statistics over
the runs of a group are those of `run/statistics.py`. Where the seeds are too few for a figure the page says so.
"""

import base64
import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.run.statistics import Aggregate, Estimate, aggregate, curve_band, probability_of_improvement

Series = tuple[np.ndarray, np.ndarray]
"""Steps, increasing, and the value at each of them; both (points,)."""

PALETTE = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#ca9a04", "#06b6d4", "#ec4899", "#84a916", "#8b7355")
# Colours that stand in a drawing for variables of the style sheet, so that one drawing suits a light and a dark page.
VARIABLES = {"#010203": "var(--ink)", "#010204": "var(--muted)", "#010205": "var(--line)"}
INK, MUTED, LINE = VARIABLES
MAX_POINTS, SMALL_POINTS = 300, 80  # of a line in a large and in a small plot; longer ones are averaged over bins
MAX_VIDEOS, MAX_VIDEO_BYTES = 4, 12_000_000  # of a group, of one video: the page must still open at once
SECTIONS = {"train": "Updates", "diagnostics": "Diagnostics", "rollout": "Training episodes", "time": "Speed"}
FIRST_METRICS = ("critic_loss", "actor_loss", "value_loss", "loss", "mean", "grad_norm", "entropy", "ent_coef")


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

    @property
    def empty(self) -> bool:
        return not (self.metrics or self.diverged or len(self.returns[0]) or self.evaluation)

    @property
    def task(self) -> str:
        return str(self.config.get("dataset") or self.config.get("env"))

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
        return float(self.returns[1][-1]) if len(self.returns[0]) else _finite(self.evaluation.get("mean"))

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
    name: str
    axis: str
    """what the steps count."""
    meaning: str
    """what the learning curves are made of."""
    groups: tuple[Group, ...]
    pairs: tuple[tuple[Group, Group, Estimate], ...]
    """P(first > second) for each pair of agents that both have scores, the higher IQM first."""


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes `report.html` and `report.json` into the folder `out`, or to an .html path; returns the page's path.

    A folder that is no run stands for the runs below it. ReportError, and nothing written: no runs given, a folder
    without runs, a file that cannot be read, nothing logged yet.
    """
    given = [Path(run) for run in runs]
    loaded = [_read_run(folder) for folder in _expand(given)]
    # A run found below a folder may just have started; one that was asked for by name must have something to show.
    named = {path.resolve() for path in given}
    empty, full = [run for run in loaded if run.empty], [run for run in loaded if not run.empty]
    asked = [run for run in empty if run.path.resolve() in named]
    if asked or not full:
        names = ", ".join(str(run.path) for run in asked or empty)
        raise ReportError(f"nothing to report yet in {names}: let it train until its first log line or evaluation")
    page = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    if page.parent.exists() and not page.parent.is_dir():
        raise ReportError(f"{page.parent} is a file: name a folder, or a path that ends in .html")

    tasks = _tasks(full)
    created = datetime.now().astimezone()
    figures = _figures(tasks, full, empty) | {"created": created.isoformat(timespec="seconds")}
    page.parent.mkdir(parents=True, exist_ok=True)
    _replace(page.with_suffix(".json"), json.dumps(figures, indent=1, allow_nan=False, default=str) + "\n")
    _replace(page, _page(tasks, full, empty, created.strftime("%d %B %Y, %H:%M")))
    return page


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# ---------------------------------------------------------------------------------------------------- reading


def _expand(given: Sequence[Path]) -> list[Path]:
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


def _read_run(folder: Path) -> Run:
    config = _read_json(folder / "config.json")
    if not config.get("agent") or not (config.get("env") or config.get("dataset")):
        raise ReportError(f"{folder / 'config.json'} must name an agent, and an env or a dataset: is this a run?")
    done = (folder / "DONE").exists()

    points: dict[str, dict[float, float]] = {}
    for name, step, value in _read_csv(folder / "metrics.csv", ("name", "step", "value"), _metric, done):
        points.setdefault(name, {})[step] = value  # a resumed run logs some steps again: the later row counts
    metrics = {name: _series(row.items()) for name, row in sorted(points.items())}

    episodes: dict[float, dict[float, tuple[float, float]]] = {}
    for step, episode, *values in _read_csv(
        folder / "eval.csv", ("step", "episode", "return", "success"), _episode, done
    ):
        episodes.setdefault(step, {})[episode] = (values[0], values[1])
    means = {step: np.mean(list(rows.values()), axis=0) for step, rows in episodes.items()}
    broken = {name: [step for step, value in row.items() if not math.isfinite(value)] for name, row in points.items()}
    broken["return"] = [step for step, mean in means.items() if not math.isfinite(mean[0])]

    command = folder / "command.txt"
    return Run(
        path=folder,
        config=config,
        done=done,
        metrics={name: series for name, series in metrics.items() if len(series[0])},
        returns=_series((step, mean[0]) for step, mean in means.items()),
        successes=_series((step, mean[1]) for step, mean in means.items()),
        diverged={name: int(min(steps)) for name, steps in broken.items() if steps},
        lost=bool(means) and max(means) in broken["return"],
        evaluation=_read_json(folder / "evaluation.json", required=False),
        diagnosis=_read_json(folder / "diagnose.json", required=False),
        machine=_read_json(folder / "env.json", required=False),
        command=command.read_text(encoding="utf-8", errors="replace").strip() if command.is_file() else "",
        videos=tuple(sorted((folder / "videos").glob("*.mp4"))),
    )


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


def _series(points: Iterable[tuple[float, float]]) -> Series:
    """Points in the order of their steps, without those that are nan or inf."""
    pairs = sorted((float(step), float(value)) for step, value in points if math.isfinite(value))
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs])


def _thin(series: Series, points: int) -> Series:
    """At most so many points: the means over bins of neighbours."""
    steps, values = series
    if len(steps) <= points:
        return series
    edges = np.linspace(0, len(steps), points + 1).astype(int)
    counts = np.diff(edges)
    return np.add.reduceat(steps, edges[:-1]) / counts, np.add.reduceat(values, edges[:-1]) / counts


def _finite(value: Any) -> float | None:
    """A finite number, or None for whatever else a JSON file holds."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _verdicts(run: Run) -> list[dict[str, str]]:
    """The verdicts of `trimtab diagnose`: name, level (ok, warn, bad) and text."""
    found = [verdict for verdict in run.diagnosis.get("verdicts") or [] if isinstance(verdict, dict)]
    return [{key: str(verdict.get(key, "")) for key in ("name", "level", "text")} for verdict in found]


# ---------------------------------------------------------------------------------------------------- statistics


def _tasks(runs: Sequence[Run]) -> list[Task]:
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
    for name, found in labelled.items():
        members = [run for group in found.values() for run in group]
        meaning, curve = _curves(members)
        groups = tuple(_group(label, colours[label], group, curve) for label, group in found.items())
        scored = sorted(
            ((group.last.iqm.value, group) for group in groups if group.last), key=lambda pair: pair[0], reverse=True
        )
        pairs = tuple(
            (a, b, probability_of_improvement(np.array(a.scores), np.array(b.scores)))
            for (_, a), (_, b) in itertools.combinations(scored, 2)
        )
        tasks.append(Task(name, _axis(members), meaning, groups, pairs))
    return tasks


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
    """What the learning curves of a task are made of, and the one of each run: evaluations, wherever some run has them."""
    none = (np.zeros(0), np.zeros(0))
    if any(len(run.returns[0]) for run in runs):
        return "evaluation episodes", lambda run: run.returns
    if any("eval/mean_reward" in run.metrics for run in runs):
        return "evaluation episodes", lambda run: run.metrics.get("eval/mean_reward", none)
    return "training episodes", lambda run: _thin(run.metrics.get("rollout/ep_rew_mean", none), MAX_POINTS)


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
    offline = {bool(run.config.get("dataset")) for run in runs}
    if offline == {False}:
        return "environment steps"
    mixed = len(offline) > 1 or any(run.config.get("online_steps") for run in runs)
    return "steps" if mixed else "gradient steps"


# ---------------------------------------------------------------------------------------------------- report.json


def _figures(tasks: Sequence[Task], runs: Sequence[Run], empty: Sequence[Run]) -> dict[str, Any]:
    """Every figure of the page as plain JSON; null where a figure is not defined."""
    groups = lambda task: [
        {
            "agent": group.agent,
            "seeds": [run.seed for run in group.runs],
            "runs": [str(run.path) for run in group.runs],
            "scores": group.scores,
            "last": asdict(group.last) if group.last else None,
            "best": asdict(group.best) if group.best else None,
            "curve": asdict(group.band) if group.band else None,
            "success": asdict(group.success) if group.success else None,
        }
        for group in task.groups
    ]
    comparisons = lambda task: [
        {"better": a.agent, "than": b.agent, "probability": asdict(estimate)} for a, b, estimate in task.pairs
    ]
    return _plain(
        {
            "tasks": [
                {
                    "task": task.name,
                    "axis": task.axis,
                    "curves": task.meaning,
                    "groups": groups(task),
                    "comparisons": comparisons(task),
                }
                for task in tasks
            ],
            "runs": [
                {
                    "run": str(run.path),
                    "task": run.task,
                    "agent": run.config["agent"],
                    "seed": run.seed,
                    "done": run.done,
                    "step": run.step,
                    "last": run.last,
                    "best": run.best,
                    "diverged": run.diverged,
                    "evaluation": run.evaluation or None,
                    "metrics": {name: values[-1] for name, (_, values) in run.metrics.items()},
                    "verdicts": _verdicts(run),
                    "diagnostics": run.diagnosis.get("values") or {},
                    "versions": run.machine.get("versions"),
                    "command": run.command,
                }
                for run in runs
            ],
            "nothing_yet": [str(run.path) for run in empty],
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


# ---------------------------------------------------------------------------------------------------- plots


def _plot(draw: Callable[[Any], None], size: tuple[float, float], name: str) -> str:
    """An inline SVG of `size` inches. `name` labels it and keeps its ids apart from those of the other plots."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "lines.solid_capstyle": "round",
    }
    with rc_context(style):
        figure = Figure(figsize=size)
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
        axes.yaxis.set_major_locator(MaxNLocator(4 if size[1] < 3 else 6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y)))
        draw(axes)
        figure.tight_layout(pad=0.3)
        text = io.StringIO()
        none = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg {box[0]} role="img" aria-label="{escape(name)}">' + svg[svg.index(">") + 1 :]
    # What the browser does not need: comments, ids that nothing refers to, a rule that would apply to the whole page.
    svg = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def _line(axes: Any, series: Series, colour: str, width: float, opacity: float) -> None:
    steps, values = series
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, values, color=colour, linewidth=width, alpha=opacity, marker=marker, markersize=4)


def _draw_curves(axes: Any, task: Task) -> None:
    for group in task.groups:
        several = len(group.curves) > 1 and group.band is not None
        for series in group.curves:
            _line(axes, _thin(series, MAX_POINTS), group.colour, 0.9 if several else 2.0, 0.35 if several else 1.0)
        if several and group.band:
            band = group.band
            axes.fill_between(band.steps, band.low, band.high, color=group.colour, alpha=0.16, linewidth=0)
            _line(axes, (band.steps, band.iqm), group.colour, 2.2, 1.0)
    axes.set_xlabel(task.axis)
    axes.set_ylabel("return")


def _draw_success(axes: Any, task: Task) -> None:
    for group in task.groups:
        if group.success:
            band = group.success
            axes.fill_between(band.steps, band.low, band.high, color=group.colour, alpha=0.16, linewidth=0)
            _line(axes, (band.steps, band.iqm), group.colour, 2.2, 1.0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(task.axis)
    axes.set_ylabel("success rate")


def _draw_lines(axes: Any, lines: Sequence[tuple[str, Series]]) -> None:
    """Small plot: one line a run. A quantity that spans more than 2.5 decades gets a logarithmic axis."""
    lines = [(colour, _thin(series, SMALL_POINTS)) for colour, series in lines]
    values = np.concatenate([series[1] for _, series in lines])
    if values.min() > 0 and values.max() > 300 * values.min():
        axes.set_yscale("log")
    crowded = len(lines) > 3
    for colour, series in lines:
        _line(axes, series, colour, 0.9 if crowded else 1.4, 0.65 if crowded else 0.9)


def _short(value: float) -> str:
    """A tick's label: 250000 as 250k, 0.00030 as 0.0003."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


# ---------------------------------------------------------------------------------------------------- report.html


def _page(tasks: Sequence[Task], runs: Sequence[Run], empty: Sequence[Run], created: str) -> str:
    agents = {group.agent: group.colour for task in tasks for group in task.groups}
    counts = " · ".join(
        f"{count} {word}{'s' * (count != 1)}"
        for count, word in ((len(runs), "run"), (len(tasks), "task"), (len(agents), "agent"))
    )
    training = sum(not run.done for run in runs)
    state = f" · {training} not finished" if training else ""
    parts = [f"<header><h1>Trimtab report</h1><p>{counts}{state} · {escape(created)}</p></header>"]
    if len(tasks) > 1:
        parts.append(_overview(tasks, agents))
    parts += [_task_section(task, index) for index, task in enumerate(tasks)]
    parts.append(_runs_section(runs, empty))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Trimtab report: {escape(', '.join(task.name for task in tasks))}</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _overview(tasks: Sequence[Task], agents: dict[str, str]) -> str:
    head = "".join(f"<th>{_chip(agent, colour)}</th>" for agent, colour in agents.items())
    rows = []
    for index, task in enumerate(tasks):
        found = {group.agent: group.last.iqm for group in task.groups if group.last}
        top = max((estimate.value for estimate in found.values()), default=math.nan)
        cells = [found.get(agent) for agent in agents]
        lead = ['class="lead"' if cell and len(found) > 1 and cell.value == top else "" for cell in cells]
        columns = "".join(f"<td {mark}>{_estimate(cell)}</td>" for mark, cell in zip(lead, cells, strict=True))
        rows.append(f'<tr><th><a href="#task{index}">{escape(task.name)}</a></th>{columns}</tr>')
    return (
        f'<section class="card"><h2>At a glance</h2><div class="scroll"><table><tr><th>task</th>{head}</tr>{"".join(rows)}'
        "</table></div><p class=note>Interquartile mean of the return at the last checkpoint, with its 95 % interval over "
        "seeds. The highest of a row is bold; whether it is more than luck stands under each task.</p></section>"
    )


def _task_section(task: Task, index: int) -> str:
    legend = " ".join(_chip(group.agent, group.colour) for group in task.groups)
    parts = [f'<section id="task{index}"><h2>{escape(task.name)}</h2><p class="legend">{legend}</p>']
    plots = []
    success = any(group.success for group in task.groups)
    size = (5.2, 3.3) if success else (10.4, 3.9)
    if any(group.curves for group in task.groups):
        bands = any(len(group.curves) > 1 for group in task.groups)
        text = f"Mean return of {task.meaning}" + (
            "; thin lines are seeds, thick ones their interquartile mean, with the 95 % bootstrap band."
            if bands
            else "."
        )
        svg = _plot(lambda axes: _draw_curves(axes, task), size, f"{task.name}: learning curve")
        plots.append(f"<figure>{svg}<figcaption>{text}</figcaption></figure>")
    if success:
        svg = _plot(lambda axes: _draw_success(axes, task), size, f"{task.name}: success rate")
        text = "Share of evaluation episodes that succeed, interquartile mean over seeds."
        plots.append(f"<figure>{svg}<figcaption>{text}</figcaption></figure>")
    parts.append(f'<div class="card plots">{"".join(plots)}</div>' if plots else "")
    parts.append(_evaluation_table(task))
    parts.append(_comparisons(task))
    parts.append(_verdict_list(task))
    parts.append(_videos(task))
    parts += [_metric_plots(task, prefix, title) for prefix, title in SECTIONS.items()]
    parts.append(_diagnosis_values(task))
    return "\n".join(part for part in parts if part) + "</section>"


def _evaluation_table(task: Task) -> str:
    estimates = [group.last.iqm for group in task.groups if group.last]
    ends = [x for e in estimates for x in (e.value, e.low, e.high) if math.isfinite(x)]
    success = any(group.success for group in task.groups)
    rows = []
    for group in task.groups:
        seeds = f"{len(group.scores)}" + (f" of {len(group.runs)}" if len(group.scores) < len(group.runs) else "")
        row = f"<th>{_chip(group.agent, group.colour)}</th><td>{seeds}</td>"
        if group.last and group.best:
            steps = sorted({run.step for run in group.runs if run.last is not None})
            step = _short(steps[0]) if len(steps) == 1 else f"{_short(steps[0])}-{_short(steps[-1])}"
            bar = _bar(group.last.iqm, min(ends), max(ends), group.colour)
            row += f"<td>{step}</td><td>{_estimate(group.last.iqm)}</td><td class=wide>{bar}</td>"
            row += "".join(f"<td>{_estimate(e)}</td>" for e in (group.last.mean, group.last.median, group.best.mean))
        else:
            row += '<td colspan="6" class="faint">no evaluation yet</td>'
        if success:
            row += f"<td>{_number(float(group.success.iqm[-1])) if group.success else '–'}</td>"
        rows.append(f"<tr>{row}</tr>")
    head = "<tr><th></th><th></th><th></th><th colspan=4 class=over>last checkpoint</th><th class=over>best checkpoint</th>"
    head += f"{'<th></th>' if success else ''}</tr><tr><th>agent</th><th>seeds</th><th>step</th><th>IQM</th><th></th>"
    head += f"<th>mean</th><th>median</th><th>mean</th>{'<th>success</th>' if success else ''}</tr>"
    notes = [f"<p class=note>{note}</p>" for note in _notes(task)]
    return f'<div class="card"><h3>Return</h3><div class="scroll"><table>{head}{"".join(rows)}</table></div>{"".join(notes)}</div>'


def _notes(task: Task) -> list[str]:
    """What a reader must know before trusting the table."""
    notes = [
        "Score of a seed: mean return of its evaluation episodes. In brackets the 95 % interval of the stratified bootstrap "
        "over seeds. The best checkpoint is chosen on the episodes it is measured on, so it flatters; quote the last."
    ]
    sizes = [len(group.scores) for group in task.groups if group.scores]
    if 1 in sizes:
        notes.append("1 seed: no interval. Nothing is known about the spread over seeds; train at least five.")
    if any(2 <= size < 5 for size in sizes):
        notes.append("Fewer than five seeds: the intervals are too narrow to be trusted.")
    steps = {run.step for group in task.groups for run in group.runs if run.last is not None}
    if len(steps) > 1:
        notes.append("The runs stop at different steps, so their last checkpoints are not strictly comparable.")
    for group in task.groups:
        seeds = [run.seed for run in group.runs]
        if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
            notes.append(f"{escape(group.agent)}: seed {', '.join(twice)} occurs more than once, and each run counts.")
    return notes


def _comparisons(task: Task) -> str:
    if not task.pairs:
        return ""
    rows = [
        f"<tr><td>{_chip(a.agent, a.colour)} &gt; {_chip(b.agent, b.colour)}</td><td>{_estimate(estimate)}</td>"
        f"<td class=wide>{_bar(estimate, 0.0, 1.0, a.colour, middle=True)}</td></tr>"
        for a, b, estimate in task.pairs
    ]
    return (
        '<div class="card"><h3>Probability of improvement</h3><div class="scroll"><table>'
        + "".join(rows)
        + "</table></div>"
        "<p class=note>P(A &gt; B): how often a random seed of A ends above a random seed of B. An interval that holds "
        "0.5 (the mark in the middle) means that the runs do not tell the two apart.</p></div>"
    )


def _verdict_list(task: Task) -> str:
    items = []
    for group in task.groups:
        for run in group.runs:
            for verdict in _verdicts(run):
                level = verdict["level"] if verdict["level"] in ("ok", "warn", "bad") else "warn"
                items.append(
                    f'<li class="{level}"><span class="level">{escape(verdict["level"])}</span><span><b>'
                    f"{escape(verdict['name'])}</b> {_chip(f'{group.agent}, seed {run.seed}', group.colour)}<br>"
                    f"{escape(verdict['text'])}</span></li>"
                )
    return f'<div class="card"><h3>Diagnosis</h3><ul class="verdicts">{"".join(items)}</ul></div>' if items else ""


def _videos(task: Task) -> str:
    items, left = [], []
    for group in task.groups:
        newest = [run.videos[-1:] for run in group.runs]
        older = [run.videos[:-1] for run in group.runs]
        shown = 0
        for path in itertools.chain(*newest):
            if shown == MAX_VIDEOS or path.stat().st_size > MAX_VIDEO_BYTES:
                left.append(path)
                continue
            shown += 1
            data = base64.b64encode(path.read_bytes()).decode()
            items.append(
                f'<figure><video controls muted loop playsinline src="data:video/mp4;base64,{data}"></video>'
                f"<figcaption>{_chip(group.agent, group.colour)} {escape(path.parent.parent.name)}, {escape(path.name)}"
                "</figcaption></figure>"
            )
        left += itertools.chain(*older)
    more = f"<p class=note>Not embedded: {escape(', '.join(map(str, left)))}</p>" if left else ""
    if not items and not more:
        return ""
    return f'<div class="card"><h3>Videos</h3><div class="videos">{"".join(items)}</div>{more}</div>'


def _metric_plots(task: Task, prefix: str, title: str) -> str:
    """Small multiples: one plot a metric, one line a run."""
    lines: dict[str, list[tuple[str, Series]]] = {}
    for group in task.groups:
        for run in group.runs:
            for name, series in run.metrics.items():
                if name.startswith(f"{prefix}/") and name != "time/total_timesteps":
                    lines.setdefault(name.removeprefix(f"{prefix}/"), []).append((group.colour, series))
    if prefix == "diagnostics":
        lines |= _diagnosis_arrays(task)
    if not lines:
        return ""
    rank = lambda name: next((i for i, part in enumerate(FIRST_METRICS) if part in name), len(FIRST_METRICS))
    plots = []
    for name in sorted(lines, key=lambda name: (rank(name), name)):
        draw = lambda axes, name=name: _draw_lines(axes, lines[name])
        svg = _plot(draw, (3.1, 1.75), f"{task.name}: {prefix}/{name}")
        plots.append(f"<figure><figcaption>{escape(name.replace('_', ' '))}</figcaption>{svg}</figure>")
    shown = "open" if prefix in ("train", "diagnostics") else ""
    return (
        f'<details class="card" {shown}><summary>{title} <span class="faint">{len(plots)}</span></summary>'
        f'<div class="small">{"".join(plots)}</div></details>'
    )


def _diagnosis_arrays(task: Task) -> dict[str, list[tuple[str, Series]]]:
    """The arrays of `diagnose.json` over their index; only those of one axis of numbers can be drawn."""
    lines: dict[str, list[tuple[str, Series]]] = {}
    for group in task.groups:
        for run in group.runs:
            for name, values in (run.diagnosis.get("arrays") or {}).items():
                if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
                    series = _series(enumerate(values))
                    if len(series[0]):
                        lines.setdefault(f"{name} (by index)", []).append((group.colour, series))
    return lines


def _diagnosis_values(task: Task) -> str:
    runs = [(group, run) for group in task.groups for run in group.runs if run.diagnosis.get("values")]
    if not runs:
        return ""
    names = sorted({name for _, run in runs for name in run.diagnosis["values"]})
    head = "".join(f"<th>{_chip(f'{group.agent}, seed {run.seed}', group.colour)}</th>" for group, run in runs)
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{_number(_finite(run.diagnosis['values'].get(name)))}</td>" for _, run in runs)
        + "</tr>"
        for name in names
    ]
    table = f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    return f'<details class="card"><summary>Figures of the diagnosis</summary>{table}</details>'


def _runs_section(runs: Sequence[Run], empty: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        total = _finite(run.config.get("steps"))
        state = "done" if run.done else "not finished"
        step = _short(run.step) + (f" of {_short(total)}" if total and not run.done else "")
        iqm = Estimate(*(math.nan if x is None else x for x in map(_finite, map(run.evaluation.get, EVALUATION))))
        tested = _estimate(iqm) if math.isfinite(iqm.value) else "–"
        count = len(run.evaluation.get("episodes") or [])
        checkpoint = escape(str(run.evaluation.get("checkpoint", "")))
        tested += f' <span class="faint">{count} episodes, {checkpoint}</span>' if count else ""
        rows.append(
            f"<tr><th>{escape(str(run.path))}</th><td>{escape(str(run.seed))}</td><td>{state}</td><td>{step}</td>"
            f"<td>{_number(run.last)}</td><td>{_number(run.best)}</td><td>{tested}</td></tr>"
        )
    rows += [
        f'<tr><th>{escape(str(run.path))}</th><td>{escape(str(run.seed))}</td><td colspan="5" class="faint">nothing yet</td>'
        "</tr>"
        for run in empty
    ]
    head = "".join(f"<th>{name}</th>" for name in ("run", "seed", "state", "step", "last", "best", "trimtab eval, IQM"))
    commands = "\n".join(dict.fromkeys(run.command for run in runs if run.command))
    parts = [f'<div class="scroll"><table class="left"><tr>{head}</tr>{"".join(rows)}</table></div>']
    if commands:
        parts.append(f"<h3>Commands</h3><pre>{escape(commands)}</pre>")
    machines: dict[str, list[Run]] = {}
    for run in runs:
        if run.machine:
            machines.setdefault(json.dumps(run.machine, sort_keys=True), []).append(run)
    for key, users in machines.items():
        machine = json.loads(key)
        versions = machine.pop("versions", None) or {}
        facts = {**machine, **(versions if isinstance(versions, dict) else {"versions": versions})}
        cells = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
        which = "" if len(machines) == 1 else f' <span class="faint">{len(users)} of {len(runs)} runs</span>'
        parts.append(f"<h3>Versions and device{which}</h3><dl>{cells}</dl>")
    return f'<section class="card"><h2>Runs</h2>{"".join(parts)}</section>'


EVALUATION = ("iqm", "iqm_low", "iqm_high")


def _chip(text: str, colour: str) -> str:
    return f'<span class="chip"><i style="background:{colour}"></i>{escape(text)}</span>'


def _number(value: float | None) -> str:
    """Four significant digits, as a reader writes them: 3,214 and 0.8312."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if not math.isfinite(estimate.low):
        return f'{_number(estimate.value)} <span class="faint">1 seed: no interval</span>'
    return f'{_number(estimate.value)} <span class="faint">[{_number(estimate.low)}, {_number(estimate.high)}]</span>'


def _bar(estimate: Estimate, low: float, high: float, colour: str, middle: bool = False) -> str:
    """The figure and its interval on an axis from `low` to `high`."""
    span = (high - low) or 1.0
    place = lambda x: 2.0 + 96.0 * (x - low) / span
    mark = '<u style="left:50%"></u>' if middle else ""
    interval = ""
    if math.isfinite(estimate.low):
        left, width = place(estimate.low), place(estimate.high) - place(estimate.low)
        interval = f'<i style="left:{left:.1f}%;width:{max(width, 0.5):.1f}%;background:{colour}"></i>'
    point = f'<b style="left:{place(estimate.value):.1f}%;background:{colour}"></b>'
    return f'<div class="bar">{mark}{interval}{point}</div>'


STYLE = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1b2330; --muted: #64708a; --line: #e3e7ee; --ok: #0e9f6e; --warn: #c27803;
  --bad: #e02424; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1117; --card: #171b24; --ink: #e8ecf4; --muted: #94a0b8;
  --line: #2a3140; --ok: #31c48d; --warn: #e3a008; --bad: #f98080; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 1.75rem; } header p { margin: 0; color: var(--muted); }
h1 { font-size: 1.9rem; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 0 0 .35rem; }
section:not(.card) { margin-top: 2.75rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; } .card h3:not(:first-child) { margin-top: 1.5rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.15rem 1.3rem; margin: 0 0 1rem; }
section.card { margin-top: 2rem; }
.legend { margin: 0 0 .9rem; } .legend .chip { margin-right: 1rem; }
.chip { display: inline-flex; align-items: center; gap: .4rem; white-space: nowrap; }
.chip i { width: .7rem; height: .7rem; border-radius: 3px; flex: none; }
.plots { display: grid; gap: 1rem; } figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: inherit !important; }
figcaption { color: var(--muted); font-size: .85rem; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 1.1rem 1.4rem; margin-top: .9rem; }
.small figcaption { color: var(--ink); font-weight: 550; margin-bottom: .15rem; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem; }
video { width: 100%; border-radius: 8px; display: block; background: #000; margin-bottom: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem .45rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-weight: 400; }
tr:last-child > * { border-bottom: 0; }
tr:has(+ tr) > th:not([scope]):not(:first-child), tr:first-child > th { color: var(--muted); font-size: .82rem; }
th.over { border-bottom: 1px solid var(--line); } tr > th[colspan] { padding-bottom: .1rem; }
.lead { font-weight: 650; } .lead .faint { font-weight: 400; }
.faint, .note { color: var(--muted); } .faint { font-size: .86em; }
.note { font-size: .85rem; margin: .6rem 0 0; }
.wide { width: 26%; min-width: 130px; }
.bar { position: relative; height: 16px; border-radius: 4px; background: color-mix(in srgb, var(--line) 45%, transparent); }
.bar i { position: absolute; top: 4px; height: 8px; border-radius: 4px; opacity: .38; }
.bar b { position: absolute; top: 1px; width: 4px; height: 14px; margin-left: -2px; border-radius: 2px; }
.bar u { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--muted); }
.verdicts { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.verdicts li { display: flex; gap: .8rem; align-items: baseline; }
.verdicts b { margin-right: .6rem; } .verdicts .chip { color: var(--muted); font-size: .86rem; }
.level { flex: none; width: 3.4rem; text-align: center; border-radius: 99px; font-size: .78rem; font-weight: 650; color: var(--c);
  background: color-mix(in srgb, var(--c) 14%, transparent); padding: .05rem 0; }
.ok { --c: var(--ok); } .warn { --c: var(--warn); } .bad { --c: var(--bad); }
details > summary { cursor: pointer; font-weight: 600; } details .scroll { margin-top: .7rem; }
pre { margin: 0; padding: .8rem 1rem; background: var(--page); border-radius: 8px; overflow-x: auto; font-size: .84rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .6rem 1.2rem; margin: 0; }
dt { color: var(--muted); font-size: .82rem; } dd { margin: 0; overflow-wrap: anywhere; }
a { color: inherit; text-decoration-color: var(--muted); text-underline-offset: 3px; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
