"""`trimtab eval RUN`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from trimtab import api
from trimtab.assemble import import_all
from trimtab.cli.flags import parse
from trimtab.core import RunError, UsageError
from trimtab.envs.make import find
from trimtab.policies.flow import with_steps
from trimtab.run.folder import write_json
from trimtab.training.evaluate import normalized_score
from trimtab.training.predict import Policy


@dataclass(frozen=True)
class Flags:
    """What `trimtab eval` takes."""

    run: tyro.conf.Positional[Path]
    """run folder."""
    episodes: int = 50
    """episodes to average over."""
    video: int = 0
    """episodes to film."""
    checkpoint: Literal["final", "best", "last"] = "final"
    """which agent of the run."""
    env: str | None = None
    """another environment than the one of the run."""
    seed: int = 0
    """seed of the evaluation episodes."""
    flow_steps: int | None = None
    """Euler steps of a flow policy, in place of those it was trained with."""


def run(args: list[str]) -> None:
    """Evaluates, prints a line and writes `evaluation.json`."""
    flags = parse(Flags, args, "trimtab eval")
    if flags.video < 0:
        raise UsageError(f"video must not be negative, got {flags.video}")
    policy = api.load(flags.run, checkpoint_name=flags.checkpoint)
    import_all(policy.info["imports"])
    if flags.flow_steps is not None:
        policy = Policy(with_steps(policy.agent, flags.flow_steps), policy.spec, policy.info)
    env = env_of(policy, flags.env)
    episodes = api.evaluate_episodes(policy, env, episodes=flags.episodes, seed=flags.seed)
    record = summary(episodes) | {"checkpoint": flags.checkpoint, "seed": flags.seed, "env": env}
    if flags.flow_steps is not None:
        record |= {"flow_steps": flags.flow_steps}
    references = policy.info.get("references") if env == policy.info["env"] else None
    if references:
        record |= {"normalized_score": normalized_score(record["mean"], tuple(references)), "references": references}
    write_json(flags.run / "evaluation.json", record)
    low, high = record["iqm_low"], record["iqm_high"]
    interval = "" if low is None else f"[{low:.1f}, {high:.1f}]"
    print(f"return  mean {record['mean']:.1f} +- {record['std']:.1f}   IQM {record['iqm']:.1f} {interval}")
    if references:
        score, (random, expert) = record["normalized_score"], references
        print(f"score   {score:.1f}   (0: random {random:.1f}, 100: expert {expert:.1f}, as stored with the data set)")
    if record["success_rate"] is not None:
        print(f"success {record['success_rate']:.1%}")
    print(f"wrote   {flags.run / 'evaluation.json'} ({len(episodes)} episodes)")
    for path in film(policy, flags.run, flags.video, env):
        print(f"video   {path}")


def mean_of(run_folder: Path) -> float:
    """The mean return in a run's `evaluation.json`."""
    return float(json.loads((run_folder / "evaluation.json").read_text())["mean"])


def env_of(policy: Policy, given: str | None) -> str:
    """The environment named on the command line, else the run's. Raises `UsageError` if there is none."""
    env = given or policy.info["env"]
    if env is None:
        raise UsageError(f"{policy.info['run']} names no environment: give one with --env ID")
    return env


def summary(episodes: list[dict[str, float]]) -> dict[str, Any]:
    """Every episode, with mean, std and IQM; the interval is a bootstrap over episodes of this one policy."""
    from trimtab.run.statistics import aggregate

    returns = np.array([episode["return"] for episode in episodes])
    successes = np.array([episode["success"] for episode in episodes])
    iqm = aggregate(returns).iqm
    return {
        "episodes": [
            {"return": e["return"], "length": e["length"], "success": None if np.isnan(e["success"]) else e["success"]}
            for e in episodes
        ],
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "iqm": iqm.value,
        "iqm_low": None if np.isnan(iqm.low) else iqm.low,
        "iqm_high": None if np.isnan(iqm.high) else iqm.high,
        "success_rate": float(np.nanmean(successes)) if np.isfinite(successes).any() else None,
    }


def film(policy: Policy, run_folder: Path, episodes: int, env: str | None = None) -> list[Path]:
    """One mp4 an episode under `videos/`. Raises `UsageError` for own worlds, which have no picture,
    `RunError` if no frames can be had."""
    if not episodes:
        return []
    from trimtab.run.video import VideoError, choose_gl, record

    choose_gl()
    world = find(env_of(policy, env))
    if world.make is None:
        raise UsageError(f"{world.label} is an own world without a renderer: leave --video out")
    folder = run_folder / "videos"
    try:
        return [record(policy, world.make, folder / f"episode_{i}.mp4", seed=i) for i in range(episodes)]
    except VideoError as error:
        raise RunError(str(error)) from error
