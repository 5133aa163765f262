"""Loggers beside the CSV files, and the live progress line."""

import sys
import time
from pathlib import Path
from typing import Any

from trimtab.errors import UsageError

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
"""Names for `--log`; csv is always written."""


class TensorBoard:
    """TensorBoard events in the run folder."""

    def __init__(self, path: Path, purge_step: int | None) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(path), purge_step=purge_step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WandB:
    """Weights & Biases, for those who ask for it."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("--log wandb needs Weights & Biases: pip install 'trimtab[wandb]'") from error
        self._run = wandb.init(project="trimtab", dir=str(path), name=path.name, config=config, resume="allow")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One point a metric."""
        self._run.log(metrics, step=step)

    def close(self) -> None:
        """Ends the W&B run."""
        self._run.finish()


class MLflow:
    """MLflow, for those who ask for it."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("--log mlflow needs MLflow: pip install 'trimtab[mlflow]'") from error
        self._mlflow = mlflow
        mlflow.set_experiment("trimtab")
        mlflow.start_run(run_name=path.name)
        mlflow.log_dict(config, "config.json")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One point a metric."""
        self._mlflow.log_metrics(metrics, step=step)

    def close(self) -> None:
        """Ends the MLflow run."""
        self._mlflow.end_run()


def check_loggers(names: tuple[str, ...]) -> None:
    """Raises `UsageError` for an unknown logger."""
    for name in names:
        if name not in LOGGERS:
            raise UsageError(f"unknown logger {name!r}: choose from {', '.join(LOGGERS)}")


def make_loggers(names: tuple[str, ...], path: Path, config: dict[str, Any], resumed_at: int | None) -> list[Any]:
    """The loggers asked for beside csv. TensorBoard drops points after `resumed_at`, which are written again."""
    made: list[Any] = []
    if "tensorboard" in names:
        made.append(TensorBoard(path, None if resumed_at is None else resumed_at + 1))
    if "wandb" in names:
        made.append(WandB(path, config))
    if "mlflow" in names:
        made.append(MLflow(path, config))
    return made


class Progress:
    """One live line: step, return, updates/s, time left. On a pipe, one plain line an evaluation instead."""

    def __init__(self, total: int, start: int, unit: str, quiet: bool = False) -> None:
        self.total, self.unit, self.quiet = total, unit, quiet
        self._start, self._began = start, time.monotonic()
        self._live = sys.stderr.isatty() and not quiet
        self._returns = "-"
        if self._live:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
            from rich.console import Console

            self._bar = Bar(*columns, console=Console(stderr=True), transient=False)
            self._task = self._bar.add_task("training", total=total, completed=start, line="compiling")
            self._bar.start()

    def show(self, step: int, mean_return: float | None, updates_per_second: float) -> None:
        """Refreshes the live line."""
        if mean_return is not None:
            self._returns = f"{mean_return:.1f}"
        if self._live:
            self._bar.update(self._task, completed=step, line=self._line(step, updates_per_second))

    def evaluated(self, step: int, mean: float, std: float, run: str = "") -> None:
        """Says what an evaluation found; `run` names it when several train together."""
        found = f"{self.unit} {step:>9,}/{self.total:,}  eval return {mean:10.1f} +- {std:<8.1f}"
        self.say(f"{found} {self._left(step)} {run}".rstrip())

    def say(self, text: str) -> None:
        """A line of its own, above the live line."""
        if self.quiet:
            return
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._live:
            self._bar.stop()

    def _line(self, step: int, updates_per_second: float) -> str:
        rate = f"{updates_per_second:.0f} updates/s"
        return f"{self.unit} {step:,}/{self.total:,} | return {self._returns} | {rate} | {self._left(step)}"

    def _left(self, step: int) -> str:
        done, elapsed = step - self._start, time.monotonic() - self._began
        if done <= 0:
            return ""
        seconds = int(elapsed / done * max(0, self.total - step))  # the last rollout may end beyond the total
        return f"{seconds // 60}:{seconds % 60:02d} left"
