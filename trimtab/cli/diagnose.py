"""`trimtab diagnose RUN`."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.random as jr
import tyro

from trimtab import api
from trimtab.cli.flags import parse
from trimtab.core import UsageError
from trimtab.diagnostics.health import PROBES, verdicts
from trimtab.run.folder import read_config, write_json
from trimtab.training.compile import configure


@dataclass(frozen=True)
class Flags:
    """What `trimtab diagnose` takes."""

    run: tyro.conf.Positional[Path]
    """run folder; it may still be training."""
    probes: tuple[str, ...] = ()
    """which probes; default: all."""
    batches: int = 20
    """batches that gradients are measured on."""


def run(args: list[str]) -> None:
    """Measures, prints one verdict a line, and writes `diagnose.json`."""
    flags = parse(Flags, args, "trimtab diagnose")
    unknown = [name for name in flags.probes if name not in PROBES]
    if unknown:
        raise UsageError(f"unknown probe {unknown[0]!r}: choose from {', '.join(PROBES)}")
    if flags.batches < 1:
        raise UsageError(f"batches must be positive, got {flags.batches}")
    configure(read_config(flags.run)["device"])
    agent, source, state, step = api.reopen(flags.run)
    gamma = agent.config.gamma
    values: dict[str, float] = {}
    for name in flags.probes or PROBES:
        found = jax.jit(PROBES[name], static_argnums=(4,))(agent, source, state, jr.key(0), flags.batches)
        values |= {key: float(value) for key, value in jax.device_get(found).items()}
    lines = verdicts(values, gamma)
    for line in lines:
        print(f"{line['level']:<5} {line['text']}")
    write_json(flags.run / "diagnose.json", {"step": step, "verdicts": lines, "values": values, "arrays": {}})
    print(f"wrote {flags.run / 'diagnose.json'} (agent after {step:,} steps)")
