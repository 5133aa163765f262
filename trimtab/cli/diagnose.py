"""`trimtab diagnose RUN`."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.random as jr
import tyro

from trimtab import api
from trimtab.cli.flags import parse
from trimtab.core import UsageError
from trimtab.diagnostics import health
from trimtab.diagnostics.rollout_grad import rollout_grad, rollout_verdicts
from trimtab.run.folder import read_config, write_json
from trimtab.training.compile import configure

PROBES = health.PROBES | {"rollout-grad": rollout_grad}
"""Every probe by its command-line name; those that an agent has nothing for measure nothing."""


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
    if list(flags.probes) == ["rollout-grad"] and not values:
        raise UsageError(f"the probe rollout-grad needs a flow policy, and {read_config(flags.run)['agent']} has none")
    lines = health.verdicts(values, gamma) + rollout_verdicts(values)
    for line in lines:
        print(f"{line['level']:<5} {line['text']}")
    write_json(
        flags.run / "diagnose.json", {"step": step, "verdicts": lines, "values": values, "arrays": _arrays(values)}
    )
    print(f"wrote {flags.run / 'diagnose.json'} (agent after {step:,} steps)")


def _arrays(values: dict[str, float]) -> dict[str, list[float]]:
    """The values whose names end in _0, _1, ... as lists, for the report's plots."""
    found: dict[str, list[float]] = {}
    for name, value in values.items():
        stem, _, index = name.rpartition("_")
        if index.isdigit() and int(index) == len(found.get(stem, [])):
            found.setdefault(stem, []).append(value)
    return found
