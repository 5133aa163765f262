"""`trimtab resume RUN`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from trimtab import api
from trimtab.cli.flags import parse
from trimtab.errors import UsageError
from trimtab.run.folder import read_config


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
    if read_config(flags.run).get("wing") == "language":
        _language(flags)
        return
    trained = api.resume(flags.run, steps=flags.steps)
    print(f"run     {trained.path}")


def _language(flags: Flags) -> None:
    from trimtab.language import require

    require()
    from trimtab.language.train import resume

    if flags.steps is not None:
        raise UsageError("the steps of a language run are set when it starts: train on from RUN/final as --model")
    print(f"run     {resume(flags.run)}")
