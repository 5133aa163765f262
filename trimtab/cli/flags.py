"""Typed flags from dataclasses, by tyro, with its errors brought to one line."""

import contextlib
import difflib
import io
import re
import sys
from typing import TypeVar

import tyro

from trimtab.errors import UsageError

T = TypeVar("T")


def parse(kind: type[T], args: list[str], prog: str, description: str | None = None) -> T:
    """An instance of the dataclass `kind` from command-line `args`; `--help` prints every field and exits 0.

    Raises `UsageError` with one line that names the offending flag and the nearest right one.
    """
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            parsed = tyro.cli(kind, args=args, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(captured.getvalue(), prog)) from stop
    sys.stderr.write(captured.getvalue())
    return parsed


def _one_line(box: str, prog: str) -> str:
    """The message of tyro's box, and the flag it proposes. The box is drawn with plain dashes on an ASCII terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│| ") for line in text.splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    if len(lines) > 1 and not lines[1].strip("-"):
        lines = lines[1:]  # the title, which stands in the frame elsewhere
    lines = [line for line in lines if line.strip("─-")]
    message: list[str] = []
    for line in lines:
        if line.startswith(("Perhaps", "Argument helptext", "For full helptext")):
            break
        message.append(line)
    proposals = [line.split()[0] for line in lines[len(message) :] if line.startswith("--")]
    found = " ".join(message) or "wrong usage"
    if "Unrecognized" in found and proposals:
        wrong = next((word.strip(",") for word in found.split() if word.startswith("--")), "")
        nearest = difflib.get_close_matches(wrong, proposals, n=1, cutoff=0.0)
        found += f": did you mean {nearest[0]}?"
    return f"{found[0].lower()}{found[1:]} (see `{prog} --help`)"
