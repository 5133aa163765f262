"""`trimtab reproduce PAPER`."""

import difflib
import importlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from trimtab.cli.flags import parse
from trimtab.core import RunError, UsageError
from trimtab.papers import BUDGETED, PAPERS, SELECTIVE


@dataclass(frozen=True)
class Flags:
    """What `trimtab reproduce` takes."""

    paper: tyro.conf.Positional[str]
    """name of the paper; `trimtab list papers` shows them."""
    scale: Literal["smoke", "small", "paper"] = "smoke"
    """minutes, up to an hour on two cores, or the paper's own settings."""
    out: Path | None = None
    """folder of results and runs; default: reproduce/PAPER-SCALE. What is done in it already is not done again."""
    offline_steps: int | None = None
    """updates on data of each run that compares agents, at scale small; data-to-online and fino only."""
    online_steps: int | None = None
    """environment steps of these runs after them."""
    only: tuple[str, ...] = ()
    """names of settings, as the table has them, of data-to-online and reengage, or of experiments, as the pages of fac
    and fino have them: nothing else is run."""


def run(args: list[str]) -> None:
    """Runs the recipe, prints its table, writes JSON, text and PNGs. Raises `RunError` if a check fails."""
    flags = parse(Flags, args, "trimtab reproduce")
    if flags.paper not in PAPERS:
        near = difflib.get_close_matches(flags.paper, PAPERS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(PAPERS))}"
        raise UsageError(f"unknown paper {flags.paper!r}: {hint}")
    steps = {name: getattr(flags, name) for name in ("offline_steps", "online_steps")}
    given: dict[str, Any] = {name: number for name, number in steps.items() if number is not None}
    for name, number in given.items():
        if flags.paper not in BUDGETED or flags.scale != "small":
            raise UsageError(f"--{name.replace('_', '-')} is for the scale small of {' and '.join(BUDGETED)}")
        if number < 4:
            raise UsageError(f"{name.replace('_', '-')} must be at least 4, got {number}")
    if flags.only:
        if flags.paper not in SELECTIVE:
            raise UsageError(f"--only is for {', '.join(SELECTIVE[:-1])} and {SELECTIVE[-1]}")
        given["only"] = flags.only
    out = flags.out or Path("reproduce") / f"{flags.paper}-{flags.scale}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    results = importlib.import_module(PAPERS[flags.paper][0]).reproduce(flags.scale, out, **given)
    text, path = results.save(out, _options(given))
    print(text)
    print(f"wrote   {path}")
    if results.failed():
        raise RunError(f"{len(results.failed())} of {len(results.checks)} checks failed: {'; '.join(results.failed())}")


def _options(given: dict[str, Any]) -> str:
    """The flags that gave `given`, to stand in the results' command."""
    spelt = {name: value if isinstance(value, tuple) else (value,) for name, value in given.items()}
    return "".join(f" --{name.replace('_', '-')} {shlex.join(map(str, values))}" for name, values in spelt.items())
