"""What all recipes share: training runs as commands, and results as a table, a picture and JSON.

A recipe's runs are ordinary commands of the command line in processes of their own, as many at once as there are cores;
those that are done already are read, those that were interrupted are resumed. So a recipe can be stopped and started
again. Test beds of a minute, which no command trains, are calls of a function in such processes; their curves are kept.
"""

import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

import numpy as np

from trimtab.core import RunError, UsageError
from trimtab.run.folder import environment, replace_text, write_json
from trimtab.run.results import read_run
from trimtab.run.statistics import Estimate, curve_band

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#999999",
    "#000000",
    "#8b5a2b",
    "#7b3fb5",
    "#7a9a01",
    "#b22222",
)


@dataclass(frozen=True)
class Job:
    """One training run: a method in a setting with a seed, and the flags of `trimtab train` that make it."""

    setting: str
    method: str
    seed: int
    flags: tuple[str, ...]
    measure: str = "return"
    """what its evaluations are judged by: "return" or "success"."""
    together: tuple[int, ...] = ()
    """seeds that one command trains together, this job's among them; empty: a command of its own."""

    def folder(self, out: Path) -> Path:
        """Where the run lies below `out`: `--out` and `--name` are set so that it is known beforehand."""
        return out / "runs" / self.setting / self.method / (f"run_s{self.seed}" if self.together else f"s{self.seed}")

    def command(self, out: Path) -> list[str]:
        """The whole command; the same for all jobs that are trained together."""
        folder = self.folder(out)
        seeds = ["--seeds", *map(str, self.together)] if self.together else ["--seed", str(self.seed)]
        place = [*seeds, "--out", str(folder.parent), "--name", "run" if self.together else folder.name]
        return ["trimtab", "train", *self.flags, *place]


@dataclass
class Results:
    """What a recipe found: one row a number, the paper's own figures, and the checks that must hold."""

    paper: str
    scale: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    anchors: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, setting: str, method: str, seed: int | None, metric: str, value: float) -> None:
        """A measured number; `seed` is None for one over several seeds."""
        self.rows.append(dict(setting=setting, method=method, seed=seed, metric=metric, value=float(value)))

    def anchor(self, setting: str, method: str, metric: str, value: float | str, source: str) -> None:
        """A figure or statement of the paper, to stand beside ours."""
        self.anchors.append(dict(setting=setting, method=method, metric=metric, value=value, source=source))

    def check(self, name: str, passed: bool, value: float | int, threshold: float | int) -> None:
        """A claim that must hold; a failed one makes the command exit 1."""
        self.checks.append(dict(name=name, passed=bool(passed), value=float(value), threshold=float(threshold)))

    def verdict(self, setting: str, method: str, seed: int | None, found: dict[str, str]) -> None:
        """What a diagnostic says of one run: {"name", "level", "text"}."""
        self.verdicts.append(dict(setting=setting, method=method, seed=seed) | found)

    def values(self, setting: str, method: str, metric: str) -> list[float]:
        """The numbers of all seeds, in the order of the rows."""
        wanted = dict(setting=setting, method=method, metric=metric)
        return [row["value"] for row in self.rows if all(row[key] == value for key, value in wanted.items())]

    def save(self, out: Path, options: str = "") -> tuple[str, Path]:
        """Writes `results.json` and `table.txt` into `out`; returns the table and the path of the JSON file.

        `options` are further flags of the command that made the results, with a space before them.
        """
        command = f"trimtab reproduce {self.paper} --scale {self.scale}{options}"
        record = dict(paper=self.paper, scale=self.scale, command=command, versions=environment()["versions"])
        found = dict(rows=self.rows, summary=self.summary(), anchors=self.anchors, checks=self.checks)
        found |= dict(verdicts=self.verdicts) if self.verdicts else {}
        write_json(out / "results.json", record | found)
        text = self.table()
        replace_text(out / "table.txt", text + "\n")
        return text, out / "results.json"

    def summary(self) -> list[dict[str, Any]]:
        """IQM over seeds and the ends of its 95 % interval, of everything measured with more than one seed."""
        found, lines = self._groups(), []
        for (setting, method, metric), iqm in _intervals(found).items():
            name, seeds = dict(setting=setting, method=method, metric=metric), len(found[setting, method, metric])
            lines.append(name | dict(seeds=seeds, iqm=iqm.value, low=iqm.low, high=iqm.high))
        return lines

    def _groups(self) -> dict[tuple[str, str, str], list[float]]:
        """(Setting, method, metric) -> the numbers of all seeds."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for row in self.rows:
            found.setdefault((row["setting"], row["method"], row["metric"]), []).append(row["value"])
        return found

    def table(self) -> str:
        """IQM over seeds of each metric with its 95 % interval, the paper's figures below it; verdicts, checks."""
        lines = []
        groups = self._groups()
        intervals = _intervals(groups)
        for setting, metric in dict.fromkeys((setting, metric) for setting, _, metric in groups):
            lines.append(f"{setting}: {metric}")
            for key, values in groups.items():
                if (key[0], key[2]) == (setting, metric):
                    lines.append(f"  {key[1]:<28}{_summary(values, intervals.get(key))}")
            for anchor in self.anchors:
                if (anchor["setting"], anchor["metric"]) == (setting, metric):
                    lines.append(f"  {anchor['method']:<28}{anchor['value']}  ({anchor['source']})")
        shown = {(row["setting"], row["metric"]) for row in self.rows}
        for anchor in self.anchors:
            if (anchor["setting"], anchor["metric"]) not in shown:
                named = ", ".join(anchor[key] for key in ("setting", "method", "metric"))
                lines.append(f"{named}: {anchor['value']}  ({anchor['source']})")
        for one in self.verdicts:
            seed = "" if one["seed"] is None else f", seed {one['seed']}"
            lines.append(f"{one['level']:<6}  {one['setting']}, {one['method']}{seed}: {one['text']}")
        for check in self.checks:
            word = "passed" if check["passed"] else "FAILED"
            lines.append(f"{word}  {check['name']}: {check['value']:.4g} (threshold {check['threshold']:.4g})")
        return "\n".join(lines)

    def failed(self) -> list[str]:
        """Names of the checks that do not hold."""
        return [check["name"] for check in self.checks if not check["passed"]]


def _intervals(groups: Mapping[tuple[str, str, str], Sequence[float]]) -> dict[tuple[str, str, str], Estimate]:
    """IQM and the ends of its 95 % interval, of every group of more than one number; groups of a size are drawn from
    at once. NaN of a group that holds one."""
    found = {key: Estimate(np.nan, np.nan, np.nan) for key, values in groups.items() if len(values) > 1}
    for size in {len(groups[key]) for key in found}:
        keys = [key for key in found if len(groups[key]) == size and np.isfinite(groups[key]).all()]
        if keys:
            band = curve_band(np.array([groups[key] for key in keys]).T)
            found |= {key: Estimate(*map(float, row)) for key, row in zip(keys, np.stack(band, 1), strict=True)}
    return found


def _summary(values: Sequence[float], iqm: Estimate | None) -> str:
    if iqm is None:
        return f"{values[0]:10.4g}"
    return f"{iqm.value:10.4g}  [{iqm.low:.4g}, {iqm.high:.4g}]  seeds {' '.join(f'{v:.4g}' for v in values)}"


def select(jobs: Sequence[Job], only: Sequence[str]) -> list[Job]:
    """The jobs of the settings `only`; all without it. Raises `UsageError` naming the settings if one is unknown."""
    require_known(only, list(dict.fromkeys(job.setting for job in jobs)))
    return [job for job in jobs if not only or job.setting in only]


def require_known(only: Sequence[str], known: Sequence[str]) -> None:
    """Raises `UsageError` naming the known settings if one of `only` is none of them."""
    for name in only:
        if name not in known:
            raise UsageError(f"unknown setting {name!r}: choose of {', '.join(known)}")


def make_data(name: str, data: Path, episodes: int | None) -> None:
    """Collects the data set `name` into `data` unless it is there; `episodes` is its official number unless given."""
    if (data / f"{name}.json").exists():
        return
    words = ["data", "make", name, *(["--episodes", str(episodes)] if episodes else []), "--out", str(data)]
    print(f"$ {shlex.join(['trimtab', *words])}", flush=True)
    if subprocess.run([sys.executable, "-m", "trimtab.cli.main", *words]).returncode:
        raise RunError(f"the data set {name} could not be made")


def run_jobs(jobs: Sequence[Job], out: Path, say: Callable[[str], None] | None = None) -> None:
    """Trains what is not trained yet, one process a core, which it keeps to. Raises `RunError` with the last line of a
    run that failed or was interrupted; no other is begun then, and those under way are waited for.

    A command's output goes to `log.txt` beside its run.
    """
    commands = list({tuple(job.command(out)): job for job in reversed(jobs)}.values())[::-1]
    say = say or (lambda line: print(line, flush=True))
    began, done, shares = time.monotonic(), 0, core_shares(len(commands))
    free: SimpleQueue[set[int]] = SimpleQueue()
    for share in shares:
        free.put(share)
    failed = Event()

    def run(job: Job) -> tuple[Job, float]:
        if failed.is_set():
            raise RunError(f"{job.setting} {job.method} was not begun: another run failed")
        try:
            return _run(job, out)
        except BaseException:
            failed.set()  # here: before the failure is seen outside this worker would have begun its next run
            raise

    with ThreadPoolExecutor(len(shares), initializer=_keep_to, initargs=(free.get,)) as pool:
        for job, seconds in pool.map(run, commands):
            done += 1
            took = f"{seconds:.0f} s" if seconds else "was there"
            left = (time.monotonic() - began) / done * (len(commands) - done) / 60
            seeds = f"seeds {' '.join(map(str, job.together))}" if job.together else f"seed {job.seed}"
            say(f"{done}/{len(commands)}  {job.setting} {job.method} {seeds}: {took}, about {left:.0f} min left")


def _run(job: Job, out: Path) -> tuple[Job, float]:
    folder, began = _find(job, out), time.monotonic()
    if folder is not None and (folder / "DONE").exists():
        return job, 0.0
    arguments = ["resume", str(folder)] if folder is not None else job.command(out)[1:]
    log = job.folder(out).with_name(f"{job.folder(out).name}.log.txt")
    log.parent.mkdir(parents=True, exist_ok=True)
    # One thread a process: small networks gain little from a second one, two runs at once gain a lot.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    variables = os.environ | {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        file.write(f"$ {shlex.join(['trimtab', *arguments])}\n")
        file.flush()
        ended = subprocess.run(
            [sys.executable, "-m", "trimtab.cli.main", *arguments], stdout=file, stderr=subprocess.STDOUT, env=variables
        )
    if ended.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise RunError(f"{job.setting} {job.method} seed {job.seed} failed: {lines[-1]} (see {log})")
    return job, time.monotonic() - began


Curves = dict[str, list[float]]
"""Name -> values; "step" is among them."""


def run_beds(
    bed: str,
    train: Callable[[Any], Curves],
    settings: Mapping[tuple[str, int], Any],
    out: Path,
    say: Callable[[str], None] | None = None,
) -> dict[tuple[str, int], Curves]:
    """What `train` makes of each setting, a dataclass: (method, seed) -> curves.

    One process a core, each with one thread. Curves are kept with their setting in `out/runs/BED/METHOD/sSEED.json` and
    read from there unless the setting is another. `train` must be importable by its name. Raises `RunError` naming the
    run that failed; what others gave is kept.
    """
    say = say or (lambda line: print(line, flush=True))
    places = {(method, seed): out / "runs" / bed / method / f"s{seed}.json" for method, seed in settings}
    left = {key: setting for key, setting in settings.items() if not _kept(places[key], setting)}
    began, shares, context = time.monotonic(), core_shares(len(left)), multiprocessing.get_context("spawn")
    free = context.Queue()
    for share in shares:
        free.put(share)
    pool = ProcessPoolExecutor(len(shares), context, _one_thread, (free,))
    try:
        waiting = {pool.submit(train, setting): key for key, setting in left.items()}
        for done, future in enumerate(as_completed(waiting), 1):
            method, seed = waiting[future]
            try:
                curves = future.result()
            except Exception as error:
                raise RunError(f"{bed}, {method}, seed {seed} failed: {type(error).__name__}: {error}") from error
            places[method, seed].parent.mkdir(parents=True, exist_ok=True)
            write_json(places[method, seed], {"setting": asdict(left[method, seed]), "curves": curves})
            minutes = (time.monotonic() - began) / done * (len(left) - done) / 60
            say(f"{done}/{len(left)}  {bed}, {method}, seed {seed}: about {minutes:.0f} min left")
    finally:
        pool.shutdown(cancel_futures=True)
    return {key: json.loads(place.read_text())["curves"] for key, place in places.items()}


def _kept(place: Path, setting: Any) -> bool:
    return place.exists() and json.loads(place.read_text())["setting"] == json.loads(json.dumps(asdict(setting)))


def core_shares(jobs: int) -> list[set[int]]:
    """The cores that this process may use, dealt out to as many workers as can have one, at most one for each job."""
    cores = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))
    workers = max(1, min(len(cores), jobs))
    return [set(cores[worker::workers]) for worker in range(workers)]


def _keep_to(share: Callable[[], set[int]]) -> None:
    """Keeps the calling thread, and processes that it starts, to cores of its own: two runs of which each has threads
    on both of two cores get in each other's way and take 1.4 times as long."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, share())


def _one_thread(free: Any) -> None:
    """What must stand before anything that reads it is imported: one thread on cores of the process's own, and nothing
    of Hugging Face's network. `free` is a queue of these cores."""
    _keep_to(free.get)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "TRL_EXPERIMENTAL_SILENCE"):
        os.environ.setdefault(name, "1")
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries' own, of what they will rename


def _find(job: Job, out: Path) -> Path | None:
    """The run's folder: `trimtab train` puts the environment and the agent between `--out` and the name."""
    folder = job.folder(out)
    found = sorted(path.parent for path in folder.parent.glob(f"**/{folder.name}/config.json"))
    return found[0] if found else None


def folder(job: Job, out: Path) -> Path:
    """The folder of a job that has run."""
    found = _find(job, out)
    assert found is not None, f"{job} has not run"
    return found


def curve(job: Job, out: Path, measure: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Steps and means of the evaluations of a job that has run: of its returns or successes, by its own `measure`
    unless another is asked for."""
    run = read_run(folder(job, out))
    return run.successes if (measure or job.measure) == "success" else run.returns


def metrics(job: Job, out: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of everything that a job has logged, by name."""
    return read_run(folder(job, out)).metrics


def plot_curves(jobs: Sequence[Job], out: Path, path: Path, title: str) -> None:
    """A PNG: one panel a setting, thin lines for seeds, a thick one for their mean."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings = list(dict.fromkeys(job.setting for job in jobs))
    size = (4.2 * len(settings), 3.6)
    figure, panels = pyplot.subplots(1, len(settings), figsize=size, squeeze=False, layout="constrained")
    methods, lines = list(dict.fromkeys(job.method for job in jobs)), {}
    for panel, setting in zip(panels[0], settings, strict=True):
        measures = {job.measure for job in jobs if job.setting == setting}
        for method, colour in zip(methods, COLOURS, strict=False):
            curves = [curve(job, out) for job in jobs if (job.setting, job.method) == (setting, method)]
            for steps, returns in curves:
                panel.plot(steps, returns, color=colour, lw=0.7, alpha=0.5)
            if curves:
                shortest = min(len(steps) for steps, _ in curves)
                mean = np.mean([returns[:shortest] for _, returns in curves], axis=0)
                lines[method], *_ = panel.plot(curves[0][0][:shortest], mean, color=colour, lw=2)
        panel.set(xlabel="steps", ylabel=" or ".join(sorted(measures)))
        panel.set_title(setting, fontsize=10)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(alpha=0.3)
    # One colour a method in all panels; beside curves that fill a panel there is no room for names.
    columns = min(len(lines), 3 * len(settings))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_png(figure, path)


def plot_panels(found: Mapping[tuple[str, int], Curves], metrics: Sequence[str], path: Path, x: str = "step") -> None:
    """A PNG of curves that are in memory: (method, seed) -> curves; one panel a metric, one colour a method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 3.2), squeeze=False)
    for panel, metric in zip(panels[0], metrics, strict=True):
        for number, method in enumerate(dict.fromkeys(method for method, _ in found)):
            for i, curves in enumerate(found[key] for key in found if key[0] == method):
                label = None if i else method
                panel.plot(curves[x], curves[metric], color=COLOURS[number % len(COLOURS)], lw=1.2, label=label)
        panel.set(title=metric.replace("_", " "), xlabel=x)
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=7)
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)


def save_png(figure: Any, path: Path) -> None:
    """Writes a matplotlib figure under a temporary name, then renames it."""
    partial = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(partial, dpi=110)
    partial.replace(path)


def flags(agent: str, env: str | None, config: Any, **options: Any) -> tuple[str, ...]:
    """Flags of `trimtab train` for the fields of `config` that differ from their defaults, and for `options`."""
    words = [agent] + (["--env", env] if env else [])
    default = type(config)()
    for name, value in asdict(config).items():
        flag = name.replace("_", "-")
        if value == getattr(default, name):
            continue
        if isinstance(value, bool):
            words.append(f"--agent.{flag}" if value else f"--agent.no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--agent.{flag}", *map(str, values)]
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return tuple(words)
