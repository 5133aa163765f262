"""Paired, interleaved timing: every contender lives in a process of its own and they run in turns.

A round runs each contender once, so that a busy spell of the machine hits all of them; ratios are taken within a round
and their median, least and largest are reported.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("trimtab", "jax", "numpy", "torch", "stable-baselines3", "sbx-rl", "d3rlpy", "gymnasium", "mujoco")


class Contender:
    """A worker process that answers `n` on its standard input with the seconds that `n` units of work took."""

    def __init__(self, script: str, name: str, case: str) -> None:
        self.name = name
        command = [sys.executable, "-W", "ignore", script, "--worker", name, "--case", case]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect("ready")

    def _expect(self, word: str) -> list[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(f"@{word}"):
                return line.split()[1:]
        raise RuntimeError(f"the worker {self.name} ended early: is the extra 'bench' installed? (make bench)")

    def seconds(self, n: int) -> float:
        """Seconds for `n` units of work."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{n}\n")
        self._process.stdin.flush()
        return float(self._expect("took")[0])

    def close(self) -> None:
        """Ends the worker."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def serve(work: Callable[[int], float]) -> None:
    """The worker's side: `work(n)` does n units of work and returns the seconds it took."""
    print("@ready", flush=True)
    for line in sys.stdin:
        print(f"@took {work(int(line))}", flush=True)


def rates(script: str, names: list[str], case: str, units: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Units a second of each contender, one figure a round, after one round of warm-up."""
    contenders = [Contender(script, name, case) for name in names]
    try:
        found: dict[str, list[float]] = {name: [] for name in names}
        for contender in contenders:
            contender.seconds(units[contender.name])
        for _ in range(rounds):
            for contender in contenders:
                n = units[contender.name]
                found[contender.name].append(n / contender.seconds(n))
        return found
    finally:
        for contender in contenders:
            contender.close()


def row(case: str, ours: list[float], peer: list[float], peer_name: str, unit: str) -> dict[str, Any]:
    """One line of the table: medians, and the ratio of each round."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return {
        "case": case,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "peer_name": peer_name,
        "unit": unit,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""
    print(f"{'case':<36}{'ours':>9}{'peer':>9}  {'peer':<22}{'ratio (min-max)':<22}unit")
    for r in rows:
        ratio = f"{r['ratio']:.2f} ({r['ratio_min']:.2f}-{r['ratio_max']:.2f})"
        print(f"{r['case']:<36}{r['ours']:>9.1f}{r['peer']:>9.1f}  {r['peer_name']:<22}{ratio:<22}{r['unit']}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"system": platform.system(), "cpu": model, "cores": os.cpu_count()}


def versions() -> dict[str, str]:
    """Versions of the contenders and what they stand on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(path: Path | None, rows: list[dict[str, Any]], **more: Any) -> None:
    """Writes the results as JSON if a path was given."""
    if path is not None:
        record = {"machine": machine(), "versions": versions(), "command": " ".join(sys.argv), "rows": rows} | more
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """`--json`, `--quick`, and the worker's own flags."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="about a minute")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser
