"""`trimtab data make NAME`, `trimtab data show PATH` and `trimtab data convert SOURCE`."""

import difflib
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from trimtab.cli.flags import parse
from trimtab.core import UsageError


@dataclass(frozen=True)
class Make:
    """What `trimtab data make` takes."""

    name: tyro.conf.Positional[str]
    """data set, such as mujoco/hopper/medium-v0 or cube-single-play-v0; `trimtab list datasets` shows all."""
    episodes: int | None = None
    """training episodes of a scripted data set; by default its own number."""
    steps: int | None = None
    """training steps of the learner behind mujoco/... and antmaze-...; by default the task's own number."""
    rows: int | None = None
    """transitions of mujoco/...; by default the task's own number."""
    seed: int = 0
    """seed of everything random in it."""
    out: Path = Path("data")
    """folder to write it to."""


@dataclass(frozen=True)
class Show:
    """What `trimtab data show` takes."""

    dataset: tyro.conf.Positional[str]
    """a file, a folder of .npy files, or the name of a data set in data/."""


@dataclass(frozen=True)
class Convert:
    """What `trimtab data convert` takes."""

    source: tyro.conf.Positional[str]
    """a file, a folder, the name of a data set in data/, or an id in Minari's store."""
    to: Literal["npz", "npy", "hdf5", "minari"] | None = None
    """format to write; by default that of --out's ending."""
    out: Path | None = None
    """file or folder to write; an .npz file, unless its ending or --to says otherwise."""
    id: str | None = None
    """id in Minari's store, with --to minari."""
    env: str | None = None
    """one of OGBench's tasks, which gives its files their rewards."""
    fraction: float = 1.0
    """share of the rows to keep, drawn uniformly without replacement."""
    seed: int = 0
    """seed of that draw."""


def run(args: list[str]) -> None:
    """Makes, shows or converts a data set."""
    commands = {"make": _make, "show": _show, "convert": _convert}
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: trimtab data make NAME [flags] | trimtab data show PATH | "
            "trimtab data convert SOURCE --out PATH [flags]; each with --help"
        )
        if not args:
            raise UsageError("say what to do: trimtab data make NAME, or trimtab data show PATH")
        return
    if args[0] not in commands:
        near = difflib.get_close_matches(args[0], commands, n=1, cutoff=0.0)[0]
        raise UsageError(f"unknown command `data {args[0]}`: did you mean `data {near}`?")
    commands[args[0]](args[1:])


def _make(args: list[str]) -> None:
    os.environ.setdefault("MUJOCO_GL", "disabled")  # nothing is drawn here
    from trimtab.cli.behaviour import train
    from trimtab.data import collect

    flags = parse(Make, args, "trimtab data make")
    command = shlex.join(["trimtab", "data", "make", *args])
    with _Bar() as bar:
        made = collect.make(
            flags.name,
            size=collect.Size(flags.episodes, flags.steps, flags.rows),
            seed=flags.seed,
            out=flags.out,
            command=command,
            tick=bar.show,
            train=train,
        )
    for path in made:
        print(f"wrote   {path} ({path.stat().st_size / 1e6:.1f} MB)" if path.suffix == ".npz" else f"wrote   {path}")


class _Bar:
    """One live line a part: how much is done, and the time left. On a pipe a plain line now and then."""

    def __init__(self) -> None:
        self._live, self._part, self._began, self._shown = sys.stderr.isatty(), "", 0.0, 0.0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._live and self._part:
            print(file=sys.stderr)

    def show(self, part: str, done: int, of: int) -> None:
        """`done` of `of` episodes or rows of a part."""
        now = time.perf_counter()
        if part != self._part:
            if self._live and self._part:
                print(file=sys.stderr)
            self._part, self._began, self._shown = part, now, now
        if now - self._shown < (0.2 if self._live else 20.0) and done != of:
            return
        self._shown = now
        left = int((now - self._began) / done * (of - done))
        filled = 30 * done // of
        bar = f"[{'#' * filled}{'.' * (30 - filled)}] " if self._live else ""
        text = f"{part}  {bar}{done:,} of {of:,}, {left // 60}:{left % 60:02d} left"
        print(f"\r{text}   " if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)


def _show(args: list[str]) -> None:
    os.environ.setdefault("MUJOCO_GL", "disabled")
    from trimtab.data.collect import locate
    from trimtab.data.describe import describe

    flags = parse(Show, args, "trimtab data show")
    print("\n".join(describe(locate(flags.dataset))))


def _convert(args: list[str]) -> None:
    os.environ.setdefault("MUJOCO_GL", "disabled")
    from trimtab.data.collect import locate
    from trimtab.data.write import convert

    flags = parse(Convert, args, "trimtab data convert")
    out, kind = flags.out, flags.to
    if kind is None:
        ending = "" if out is None else out.suffix.removeprefix(".")
        kind = {"h5": "hdf5"}.get(ending, ending) or ("npz" if out is not None else "")
        if kind not in ("npz", "hdf5"):
            raise UsageError("say what to write: add --out FILE.npz or --out FILE.hdf5, or --to with npy or minari")
    if out is not None and not out.suffix and kind in ("npz", "hdf5"):  # a name, such as those of `--dataset`
        out = out.with_name(f"{out.name}.{kind}")
    written = convert(
        locate(flags.source),
        kind,
        out=out,
        name=flags.id,
        task=flags.env,
        fraction=flags.fraction,
        seed=flags.seed,
        command=shlex.join(["trimtab", "data", "convert", *args]),
    )
    print(f"wrote   {written}")
