"""`trimtab COMMAND`: finds the command, runs it, and turns every error into one line and an exit status.

Nothing heavy is imported before a command is known, so that `trimtab --help` answers at once.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("trimtab.cli.train", "train AGENT --env ID | --dataset PATH: train an agent"),
    "resume": ("trimtab.cli.resume", "resume RUN: go on from the last checkpoint"),
    "eval": ("trimtab.cli.evaluate", "eval RUN: evaluate a trained policy, write evaluation.json and videos"),
    "report": ("trimtab.cli.report", "report RUN...: one self-contained report.html over one or more runs"),
    "diagnose": ("trimtab.cli.diagnose", "diagnose RUN: gradient and value health, in plain words"),
    "reproduce": ("trimtab.cli.reproduce", "reproduce PAPER --scale smoke|small|paper: a paper's comparison, checked"),
    "export": ("trimtab.cli.export", "export RUN --format onnx|stablehlo: the policy as one file, checked"),
    "data": ("trimtab.cli.data", "data make NAME | data show PATH: make a data set here, or say what is in one"),
    "language": ("trimtab.cli.language", "language train grpo --model PATH --task FILE: train a language model"),
    "list": ("trimtab.cli.list", "list agents|envs|papers|datasets: what there is"),
}
"""Command -> (module with `run(args)`, help line)."""


def usage() -> str:
    """The text of `trimtab --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: trimtab COMMAND [--help] ...",
            "",
            "Reinforcement learning that stays steady.",
            "",
            *lines,
            "",
            "  --debug on any command shows the traceback of an error; trimtab --version the version.",
            "",
            "Start here: trimtab train sac --env InvertedPendulum-v5 --steps 10000",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 a failed run, 2 a usage error, 130/143 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        from trimtab import __version__

        print(__version__)
        return 0
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}"
        return _fail(f"unknown command {command!r}: {hint}", 2)
    if "" not in sys.path:
        sys.path.append("")  # users' environments next to where they stand; last, so that nothing is shadowed
    return guarded(lambda rest: importlib.import_module(COMMANDS[command][0]).run(rest), rest, debug)


def guarded(command: Callable[[list[str]], None], args: list[str], debug: bool) -> int:
    """Runs `command(args)`; every error becomes one line on stderr and an exit status."""
    from trimtab.errors import Interrupted, TrimtabError, UsageError

    try:
        command(args)
        sys.stdout.flush()
        return 0
    except Interrupted as stop:
        return _fail(str(stop), stop.status)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output went away (`trimtab list envs | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TrimtabError as error:
        if debug:
            raise
        return _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except Exception as error:  # the last resort: still one line, and the way to the traceback
        if debug:
            raise
        text = " ".join(str(error).split())
        return _fail(f"{type(error).__name__}: {text} (--debug shows where)", 1)


def _fail(text: str, status: int) -> int:
    print(f"trimtab: {' '.join(text.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
