"""`trimtab resume RUN`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from trimtab import api
from trimtab.cli.flags import parse


@dataclass(frozen=True)
class Flags:
    """What `trimtab resume` takes."""

    run: tyro.conf.Positional[Path]
    """run folder."""
    steps: int | None = None
    """a new, larger total of steps: prolongs the run."""


def run(args: list[str]) -> None:
    """Goes on from the last checkpoint."""
    flags = parse(Flags, args, "trimtab resume")
    trained = api.resume(flags.run, steps=flags.steps)
    print(f"run     {trained.path}")
