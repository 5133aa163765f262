"""One page about a set of runs: `report.html`, which needs nothing but itself, and `report.json` with the same figures.

`run/results.py` reads the run folders and takes the statistics, `run/page.py` draws; nothing else of Trimtab is needed.
Where the seeds are too few for a figure the page says so.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.run.page import render
from trimtab.run.results import ReportError, Run, Task, expand, group_runs, read_run, verdicts

__all__ = ["ReportError", "write_report"]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes `report.html` and `report.json` into the folder `out`, or to an .html path; returns the page's path.

    A folder that is no run stands for the runs below it. ReportError, and nothing written: no runs given, a folder
    without runs, a file that cannot be read, nothing logged yet.
    """
    given = [Path(run) for run in runs]
    loaded = [read_run(folder) for folder in expand(given)]
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

    tasks = group_runs(full)
    created = datetime.now().astimezone()
    figures = _figures(tasks, full, empty) | {"created": created.isoformat(timespec="seconds")}
    page.parent.mkdir(parents=True, exist_ok=True)
    _replace(page.with_suffix(".json"), json.dumps(figures, indent=1, allow_nan=False, default=str) + "\n")
    _replace(page, render(tasks, full, empty, created.strftime("%d %B %Y, %H:%M")))
    return page


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _figures(tasks: Sequence[Task], runs: Sequence[Run], empty: Sequence[Run]) -> dict[str, Any]:
    """Every figure of the page as plain JSON; null where a figure is not defined."""
    normalized = lambda task, group: task.normalized(group.last.iqm) if group.last else None
    groups = lambda task: [
        {
            "agent": group.agent,
            "seeds": [run.seed for run in group.runs],
            "runs": [str(run.path) for run in group.runs],
            "scores": group.scores,
            "last": asdict(group.last) if group.last else None,
            "best": asdict(group.best) if group.best else None,
            "normalized": asdict(score) if (score := normalized(task, group)) else None,
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
                    "switches": task.switches,
                    "references": task.references,
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
                    "failure": run.failure or None,
                    "step": run.step,
                    "last": run.last,
                    "best": run.best,
                    "around_switch": run.around_switch(run.returns),
                    "diverged": run.diverged,
                    "evaluation": run.evaluation or None,
                    "metrics": {name: values[-1] for name, (_, values) in run.metrics.items()},
                    "verdicts": verdicts(run),
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
