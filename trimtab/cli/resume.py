"""`trimtab resume RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """a new, larger total of steps, those on data included: prolongs the last phase of the run."""


def run(args: list[str]) -> None:
    """Goes on from the last checkpoint."""
    flags = parse(Flags, args, "trimtab resume")
    record = read_config(flags.run)
    if record.get("wing") == "language":
        _language(flags, record)
        return
    trained = api.resume(flags.run, steps=flags.steps)
    print(f"run     {trained.path}")


def _language(flags: Flags, record: dict[str, Any]) -> None:
    from trimtab.language import require, stay_offline

    require()
    stay_offline(record["flags"]["model"], record["flags"]["tokenizer"])
    from trimtab.language.train import resume

    if flags.steps is not None:
        raise UsageError("the steps of a language run are set when it starts: train on from RUN/final as --model")
    print(f"run     {resume(flags.run)}")
