"""`trimtab diagnose RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np
import tyro

from trimtab import api
from trimtab.assemble import import_all
from trimtab.batches import Transition
from trimtab.cli.evaluate import env_of
from trimtab.cli.flags import parse
from trimtab.core import UsageError
from trimtab.data.readers import blocks
from trimtab.data.stream import StreamSource
from trimtab.diagnostics import health
from trimtab.diagnostics.coupling import couple, coupling_verdicts
from trimtab.diagnostics.rollout_grad import rollout_grad, rollout_verdicts
from trimtab.diagnostics.seem import SeemMonitor, seem_verdicts, suits
from trimtab.diagnostics.smoothness import measure_smoothness, smoothness_verdicts
from trimtab.envs.make import find
from trimtab.run.folder import read_control, read_rows, write_json
from trimtab.run.results import logged_verdicts
from trimtab.training.compile import configure
from trimtab.training.fit import as_batch, choose_rows
from trimtab.training.recording import record

PROBES = health.PROBES | {"rollout-grad": rollout_grad, "coupling": couple}
"""Probes of the newest checkpoint by their command-line names; what an agent has nothing for measures nothing."""

NEEDS = {
    "rollout-grad": "a flow policy",
    "coupling": "a policy with a log-density and a critic Q(s, a)",
}
"""What an agent must have for these probes."""

ALL = (*PROBES, "seem", "smoothness")
"""And the one that also looks at the checkpoint before and at what was logged, and the one that acts."""


@dataclass(frozen=True)
class Flags:
    """What `trimtab diagnose` takes."""

    run: tyro.conf.Positional[Path]
    """run folder; it may still be training."""
    probes: tuple[str, ...] = ()
    """which probes; default: all but smoothness, which acts in the environment."""
    batches: int = 20
    """batches that gradients are measured on."""
    episodes: int = 10
    """episodes that smoothness is measured in."""


def run(args: list[str]) -> None:
    """Measures, prints one verdict a line, and writes `diagnose.json`."""
    flags = parse(Flags, args, "trimtab diagnose")
    unknown = [name for name in flags.probes if name not in ALL]
    if unknown:
        raise UsageError(f"unknown probe {unknown[0]!r}: choose from {', '.join(ALL)}")
    for name in ("batches", "episodes"):
        if getattr(flags, name) < 1:
            raise UsageError(f"{name} must be positive, got {getattr(flags, name)}")
    configure(read_control(flags.run)["device"])
    acting = "smoothness" in flags.probes
    values, lines, step = _acting(flags) if acting else ({}, [], 0)
    if set(flags.probes) != {"smoothness"}:
        learning, more, step = _learning(flags)
        values, lines = learning | values, more + lines
    for line in lines:
        print(f"{line['level']:<5} {line['text']}")
    write_json(
        flags.run / "diagnose.json", {"step": step, "verdicts": lines, "values": values, "arrays": _arrays(values)}
    )
    print(f"wrote {flags.run / 'diagnose.json'} (agent after {step:,} steps)")


Found = tuple[dict[str, float], list[dict[str, str]], int]
"""Values, verdicts, and the step of the checkpoint."""


def _acting(flags: Flags) -> Found:
    """Smoothness of the newest checkpoint's deterministic policy in the environment of the run."""
    policy = api.load(flags.run, checkpoint_name="last")
    import_all(policy.info["imports"])
    recordings, seconds = record(policy, find(env_of(policy, None)), flags.episodes)
    found = measure_smoothness([(one.control, one.position) for one in recordings], seconds)
    return found, smoothness_verdicts(found), int(policy.info["checkpoint"].removeprefix("step_"))


def _learning(flags: Flags) -> Found:
    """All that looks at what the newest checkpoint learns from."""
    agent, source, state, step = api.reopen(flags.run)
    gamma = agent.config.gamma
    values: dict[str, float] = {}
    for name in [name for name in flags.probes or PROBES if name in PROBES]:
        found = jax.jit(PROBES[name], static_argnums=(4,))(agent, source, state, jr.key(0), flags.batches)
        values |= {key: float(value) for key, value in jax.device_get(found).items()}
    asked = [name for name in flags.probes if name in NEEDS]
    if asked and not values and len(asked) == len(flags.probes):
        name = read_control(flags.run)["agent"]
        raise UsageError(f"the probe {asked[0]} needs {NEEDS[asked[0]]}, and {name} has none")
    looks, before = {}, []
    if not flags.probes or "seem" in flags.probes:
        looks, before = _looks(flags, agent, source, state, step)
    lines = health.verdicts(values | looks, gamma) + rollout_verdicts(values) + seem_verdicts(looks, before)
    newest = {row["name"]: float(row["value"]) for row in read_rows(flags.run / "metrics.csv")}
    return values | looks, lines + coupling_verdicts(values) + logged_verdicts(newest), step


def _looks(flags: Flags, agent: Any, source: Any, state: Any, step: int) -> tuple[dict[str, float], list[float]]:
    """seem/NAME of the newest checkpoint against the one before, and the normalised values of the looks before, oldest
    first; empty for an agent that it does not suit, unless it was asked for."""
    monitor = SeemMonitor()
    batch = as_batch(source, state, choose_rows(source, state, monitor.rows))
    if not suits(agent, batch) and not flags.probes:
        return {}, []
    measure, memory, before = jax.jit(monitor.measure), {}, []
    look = lambda agent: monitor.judge(agent.config, jax.device_get(measure(agent, batch, jr.key(0))), memory)
    older = api.earlier_agent(flags.run)
    if older is not None:
        first = look(older)
        memory, before = first.memory, [first.metrics["normalised"]]
    rows = read_rows(flags.run / "metrics.csv")
    logged = [row for row in rows if row["name"] == "diagnostics/seem_normalised" and int(row["step"]) < step]
    before += [float(row["value"]) for row in logged]
    found = {f"seem/{name}": value for name, value in look(agent).metrics.items() if value == value}
    found["seem/bound"] = largest_reward(source, state) / (1.0 - agent.config.gamma)
    return found, before


def largest_reward(source: Any, state: Any) -> float:
    """max |r| over all transitions that the source holds, not only those looked at."""
    is_rows = lambda x: isinstance(x, Transition)
    held = [x.reward for x in jax.tree.leaves((source, state), is_leaf=is_rows) if is_rows(x)]
    if isinstance(source, StreamSource):
        held += blocks(source.stream.rewards)
    return max((float(np.abs(np.asarray(reward)).max(initial=0.0)) for reward in held), default=0.0)


def _arrays(values: dict[str, float]) -> dict[str, list[float]]:
    """The values whose names end in _0, _1, ... as lists, for the report's plots."""
    found: dict[str, list[float]] = {}
    for name, value in values.items():
        stem, _, index = name.rpartition("_")
        if index.isdigit() and int(index) == len(found.get(stem, [])):
            found.setdefault(stem, []).append(value)
    return found
