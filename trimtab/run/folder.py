"""The run folder: what is written where, who may write, and what survives an interruption."""

import contextlib
import csv
import fcntl
import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from trimtab.errors import RunError, UsageError

VERSIONED = ("trimtab", "jax", "jaxlib", "equinox", "optax", "numpy", "gymnasium", "mujoco")
"""Packages whose versions `env.json` records."""


class Run:
    """One run's folder, held by one process at a time.

    `config.json` rebuilds the run, `metrics.csv` (step,name,value) and `eval.csv` (step,episode,return,length,success)
    can be read while it trains, `checkpoints/` holds what `resume` needs, `best/` and `final/` what `load` reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)
        self._metrics = _appender(path / "metrics.csv", "step,name,value")
        self._eval = _appender(path / "eval.csv", "step,episode,return,length,success")
        self._sinks: list[Any] = []

    @classmethod
    def create(
        cls,
        out: Path,
        env: str,
        agent: str,
        seed: int,
        name: str | None,
        config: dict[str, Any],
        machine: dict[str, Any] | None = None,
    ) -> "Run":
        """A new folder `out/env/agent/{name or YYYYmmdd-HHMMSS}_s{seed}` (just `name` if it is given); `machine` is
        what `env.json` holds, by default `environment()`.

        Raises `UsageError` if a run of that name exists, `RunError` if the folder cannot be written.
        """
        stamp = name if name is not None else f"{time.strftime('%Y%m%d-%H%M%S')}_s{seed}"
        path = out / env.replace(":", ".") / agent / stamp
        if name is None:
            for attempt in range(2, 1000):  # runs started within one second
                if not path.exists():
                    break
                path = path.with_name(f"{stamp}-{attempt}")
        if (path / "config.json").exists():
            raise UsageError(
                f"{path} holds a run already: resume it with `trimtab resume {path}` or choose another --name"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path)
            write_json(path / "env.json", environment() if machine is None else machine)
            write_json(path / "config.json", config)
        except OSError as error:
            raise RunError(
                f"cannot write the run folder {path}: {error.strerror or error}; choose another --out"
            ) from error
        return run

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run. Raises `UsageError` if the folder is no run, `RunError` if another process holds it."""
        read_config(path)
        return cls(path)

    def rewind(self, step: int) -> None:
        """Drops logged rows after `step`: a resumed run writes them again."""
        for name in ("metrics.csv", "eval.csv"):
            file = self.path / name
            lines = file.read_text().splitlines(keepends=True)
            # A kill can leave a last line without its end; it counts as not written.
            kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",", 1)[0]) <= step]
            replace_text(file, lines[0] + "".join(kept))
        self._metrics.close()
        self._eval.close()
        self._metrics = _appender(self.path / "metrics.csv", "step,name,value")
        self._eval = _appender(self.path / "eval.csv", "step,episode,return,length,success")

    def attach(self, sinks: list[Any]) -> None:
        """Adds loggers with `log(step, metrics)` and `close()`, such as TensorBoard's."""
        self._sinks = sinks

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One row a metric; values that were not computed (NaN) are left out."""
        metrics = {name: value for name, value in metrics.items() if value == value}
        self._write(self._metrics, "".join(f"{step},{name},{value:.9g}\n" for name, value in metrics.items()))
        for sink in self._sinks:
            sink.log(step, metrics)

    def log_eval(self, step: int, episodes: list[dict[str, float]]) -> None:
        """One row an episode with keys return, length, success (NaN where the environment has no notion of it)."""
        rows = []
        for i, episode in enumerate(episodes):
            success = "" if episode["success"] != episode["success"] else f"{episode['success']:.9g}"
            rows.append(f"{step},{i},{episode['return']:.9g},{int(episode['length'])},{success}\n")
        self._write(self._eval, "".join(rows))

    def _write(self, file: Any, text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            raise RunError(
                f"cannot write {file.name}: {error.strerror}; make room, then `trimtab resume {self.path}`"
            ) from error

    def close(self) -> None:
        """Closes the files and gives the folder free."""
        for sink in self._sinks:
            sink.close()
        for file in (self._metrics, self._eval, self._lock):
            with contextlib.suppress(OSError):  # a full disk: what could not be written has been reported
                file.close()

    @property
    def done(self) -> bool:
        """Whether the run has finished."""
        return (self.path / "DONE").exists()

    @property
    def failure(self) -> str | None:
        """Why training diverged, if it did while the runs beside this one went on."""
        file = self.path / "FAILED"
        return file.read_text().strip() if file.exists() else None

    def fail(self, why: str) -> None:
        """Marks the run as diverged: nothing more will be written, and a resume of the others leaves it alone."""
        replace_text(self.path / "FAILED", why + "\n")

    def finish(self) -> None:
        """Marks the run as finished."""
        replace_text(self.path / "DONE", time.strftime("%Y-%m-%dT%H:%M:%S%z") + "\n")


def _appender(path: Path, header: str) -> Any:
    file = path.open("a", newline="")
    if file.tell() == 0:
        file.write(header + "\n")
        file.flush()
    return file


def _lock(path: Path) -> Any:
    """An advisory lock that dies with the process, so a killed run never blocks its own resume."""
    file = (path / ".lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise RunError(f"another process is writing {path}: wait for it to end, or choose another --name") from error
    return file


def read_config(path: Path) -> dict[str, Any]:
    """The `config.json` of a run. Raises `UsageError` if the folder is no run or its config is damaged."""
    file = path / "config.json"
    if not file.exists():
        what = "does not exist" if not path.exists() else "is not a run folder (it has no config.json)"
        raise UsageError(f"{path} {what}: name a folder such as runs/Hopper-v5/sac/20260101-120000_s0")
    try:
        record = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not readable JSON ({error}): restore it or start a new run") from error
    if not isinstance(record, dict) or "format" not in record:
        raise UsageError(f"{file} is not the config of a run: restore it or start a new run")
    return record


def read_control(path: Path) -> dict[str, Any]:
    """`read_config` for what looks at agents: a run of the language wing has none, and says so in its `UsageError`."""
    record = read_config(path)
    if record.get("wing") == "language":
        raise UsageError(
            f"{path} is a language run: its evaluation is in evaluation.json, its verdict in diagnose.json, its model "
            f"in final/; see `trimtab report {path}`"
        )
    return record


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under a temporary name, then renames it."""
    replace_text(path, json.dumps(value, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that at any moment either the old or the new content is there, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def environment(packages: tuple[str, ...] = VERSIONED, device: str | None = None) -> dict[str, Any]:
    """Versions, git commits, machine and device: what a result depends on beside its config. JAX is asked for the
    device unless one is given."""
    if device is None:
        import jax  # here, so that reading run folders does not wait for it

        first = jax.devices()[0]
        device = f"{first.platform} ({first.device_kind})"
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        **_commits(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "device": device,
    }


def _commits() -> dict[str, str | None]:
    """The commit of Trimtab's sources, if they are a git checkout, and of the folder in which the command runs."""
    here = Path(__file__).absolute()
    # An installed Trimtab may lie in a repository that is not its own (.venv in a project): the commit must hold it.
    asked = {"trimtab_commit": (here.parent, ["HEAD", f"HEAD:./{here.name}"]), "working_folder_commit": (".", ["HEAD"])}
    running = {name: _git(Path(folder), objects) for name, (folder, objects) in asked.items()}  # side by side
    commits: dict[str, str | None] = {}
    for name, process in running.items():
        commits[name] = None
        if process is not None:
            try:
                out, _ = process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
            commits[name] = out.split()[0] if process.returncode == 0 else None
    return commits


def _git(folder: Path, objects: list[str]) -> "subprocess.Popen[str] | None":
    """`git rev-parse OBJECTS`, begun; None outside of repositories, for which no process is needed, and without git."""
    try:
        folder = folder.resolve()
        if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
            return None
        command = ["git", "-C", str(folder), "rev-parse", *objects]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv as dicts, without a half-written last line."""
    text = path.read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
