"""`trimtab language COMMAND`: the wing for language models."""

import shlex
from dataclasses import dataclass
from pathlib import Path

import tyro

from trimtab.cli.flags import parse
from trimtab.errors import UsageError
from trimtab.language import require, stay_offline
from trimtab.language.flags import TRAINERS, Flags, check

USAGE = """usage: trimtab language train grpo|rloo --model PATH_OR_ID --task FILE.jsonl --reward my_rewards.py [flags]
       trimtab language try FOLDER        a tiny model, a task and a reward to begin with

Trains a language model by reinforcement; --algorithm gradreg regularises gradients against reward hacking, --algorithm
gcd untangles good from bad actions. Resume with `trimtab resume RUN`, compare with `trimtab report RUN...`."""


@dataclass(frozen=True)
class TryFlags:
    """What `trimtab language try` takes."""

    folder: tyro.conf.Positional[Path]
    """folder to make."""


def run(args: list[str]) -> None:
    """Trains, or makes something to train."""
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        if not args:
            raise UsageError("name a command: train or try")
        return
    command, rest = args[0], args[1:]
    if command not in ("train", "try"):
        raise UsageError(f"unknown command {command!r}: choose train or try")
    if command == "try":
        flags = parse(TryFlags, rest, "trimtab language try")
        require()
        from trimtab.language.starter import make

        print(make(flags.folder))
        return
    if rest and rest[0] in ("-h", "--help"):
        print(f"{USAGE}\n\nflags: trimtab language train {'|'.join(TRAINERS)} --help")
        return
    if not rest or rest[0] not in TRAINERS:
        found = (
            f"unknown trainer {rest[0]!r}: " if rest and not rest[0].startswith("-") else "the trainer comes first: "
        )
        raise UsageError(f"{found}trimtab language train {'|'.join(TRAINERS)} --model PATH_OR_ID ...")
    flags = parse(Flags, rest[1:], f"trimtab language train {rest[0]}")
    require()
    check(flags, rest[0])
    stay_offline(flags.model, flags.tokenizer)
    from trimtab.language.train import train  # here: PyTorch and TRL take seconds

    path = train(rest[0], flags, shlex.join(["trimtab", "language", *args]))
    print(f"run     {path}")
    print(f"next    trimtab report {path}")
