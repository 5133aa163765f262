"""`trimtab report RUN...`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from trimtab.cli.flags import parse
from trimtab.core import UsageError


@dataclass(frozen=True)
class Flags:
    """What `trimtab report` takes."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or folders that hold runs."""
    out: Path = Path("report")
    """folder to write report.html and report.json to."""


def run(args: list[str]) -> None:
    """Writes one self-contained page over all runs."""
    from trimtab.run.report import ReportError, write_report

    flags = parse(Flags, args, "trimtab report")
    if not flags.runs:
        raise UsageError("name at least one run folder: trimtab report runs/Hopper-v5/sac")
    try:
        page = write_report(flags.runs, flags.out)
    except ReportError as error:
        raise UsageError(str(error)) from error
    print(f"report  {page}")
