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
from trimtab.ope.evaluate import ESTIMATORS, OfflineEvaluation, Settings, check_estimators
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
    ope: tuple[str, ...] = ()
    """off-policy estimators beside the episodes: fqe, wdr; without an environment alone."""
    dataset: str | None = None
    """data set for --ope, a path or a name; default: the one the run was trained on."""
    ope_gamma: float | None = None
    """discount factor of the estimates; default: the run's."""
    ope_steps: int = Settings.steps
    """updates of the critic."""
    ope_behaviour_steps: int = Settings.behaviour_steps
    """updates of the behaviour model (wdr)."""
    ope_hidden: tuple[int, ...] = Settings.hidden
    """widths of the hidden layers of both."""
    ope_learning_rate: float = Settings.learning_rate
    """Adam's step size for both."""
    ope_tau: float = Settings.tau
    """share of the new critic mixed into its target."""
    ope_members: int = Settings.members
    """critics."""
    ope_batch_size: int = Settings.batch_size
    """transitions in one update."""
    ope_action_samples: int = Settings.action_samples
    """actions that V(s) is the mean over, for a stochastic policy."""
    ope_smoothing: float = Settings.smoothing
    """evaluate a deterministic policy with normal noise of this standard deviation on its actions, so that wdr has a
    density; 0: as it is."""


def run(args: list[str]) -> None:
    """Evaluates, prints a line and writes `evaluation.json`."""
    flags = parse(Flags, args, "trimtab eval")
    if flags.video < 0:
        raise UsageError(f"video must not be negative, got {flags.video}")
    check_estimators(flags.ope)
    policy = api.load(flags.run, checkpoint_name=flags.checkpoint)
    import_all(policy.info["imports"])
    if flags.flow_steps is not None:
        policy = Policy(with_steps(policy.agent, flags.flow_steps), policy.spec, policy.info)
    if flags.dataset is not None and not flags.ope:
        raise UsageError("--dataset is for off-policy estimates: add --ope fqe")
    alone = bool(flags.ope) and flags.env is None and policy.info["env"] is None
    env = None if alone else env_of(policy, flags.env)
    if alone and flags.video:
        raise UsageError(f"{flags.run} names no environment to film: give one with --env ID")
    offline = _offline(policy, flags) if flags.ope else None
    record: dict[str, Any] = {"checkpoint": flags.checkpoint, "seed": flags.seed, "env": env}
    record |= {"updates": int(policy.agent.step)}
    if flags.flow_steps is not None:
        record |= {"flow_steps": flags.flow_steps}
    if env is not None:
        episodes = api.evaluate_episodes(policy, env, episodes=flags.episodes, seed=flags.seed)
        record = summary(episodes) | record
        references = policy.info.get("references") if env == policy.info["env"] else None
        if references:
            score = normalized_score(record["mean"], tuple(references))
            record |= {"normalized_score": score, "references": references}
        _print_summary(record)
    if offline is not None:
        record["ope"] = offline.to_json() | {"dataset": str(flags.dataset or policy.info["dataset"])}
        if env is not None:
            record["ope"]["measured"] = _measured(policy, offline, env, flags)
        _print_offline(record["ope"])
    elif earlier := _earlier(flags.run / "evaluation.json", record):
        record["ope"] = earlier  # of the same policy: it is still true
    write_json(flags.run / "evaluation.json", record)
    what = "off-policy estimates alone" if env is None else f"{flags.episodes} episodes"
    print(f"wrote   {flags.run / 'evaluation.json'} ({what})")
    for path in film(policy, flags.run, flags.video, env):
        print(f"video   {path}")


def _earlier(path: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The off-policy estimates in the file, if they are of the policy that is evaluated now: a checkpoint's name alone
    does not tell, for a run may have been prolonged."""
    found = json.loads(path.read_text()) if path.exists() else {}
    same = all(found.get(name) == record.get(name) for name in ("checkpoint", "updates", "flow_steps"))
    return found.get("ope") if same else None


def _print_summary(record: dict[str, Any]) -> None:
    low, high = record["iqm_low"], record["iqm_high"]
    interval = "" if low is None else f"[{low:.1f}, {high:.1f}]"
    print(f"return  mean {record['mean']:.1f} +- {record['std']:.1f}   IQM {record['iqm']:.1f} {interval}")
    if "references" in record:
        score, (random, expert) = record["normalized_score"], record["references"]
        print(f"score   {score:.1f}   (0: random {random:.1f}, 100: expert {expert:.1f}, as stored with the data set)")
    if record["success_rate"] is not None:
        print(f"success {record['success_rate']:.1%}")


def _offline(policy: Policy, flags: Flags) -> OfflineEvaluation:
    settings = Settings(
        gamma=flags.ope_gamma,
        steps=flags.ope_steps,
        hidden=flags.ope_hidden,
        learning_rate=flags.ope_learning_rate,
        tau=flags.ope_tau,
        members=flags.ope_members,
        batch_size=flags.ope_batch_size,
        behaviour_steps=flags.ope_behaviour_steps,
        smoothing=flags.ope_smoothing,
        action_samples=flags.ope_action_samples,
    )
    return api.evaluate_offline(policy, flags.dataset, estimators=flags.ope, settings=settings, seed=flags.seed)


def _measured(policy: Policy, offline: OfflineEvaluation, env: str, flags: Flags) -> dict[str, float | None]:
    """The discounted return of the policy that was estimated, from episodes of the environment."""
    episodes = api.evaluate_episodes(
        policy, env, episodes=flags.episodes, seed=flags.seed, gamma=offline.gamma, acting=offline.policy
    )
    returns = np.array([episode["discounted"] for episode in episodes])
    error = float(returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else float("nan")
    return {
        "value": float(returns.mean()),
        "standard_error": None if np.isnan(error) else error,
        "cut": float(np.mean([episode["cut"] for episode in episodes])),
    }


def _print_offline(record: dict[str, Any]) -> None:
    """What the data say beside what the environment says."""
    kind = {"deployed": "the deployed policy", "stochastic": "the stochastic policy behind it", "smoothed": "smoothed"}
    print(
        f"ope     {kind[record['kind']]}, discounted return with gamma {record['gamma']:g}, "
        f"{record['trajectories']:,} trajectories of {record['dataset']}"
    )
    for name in ESTIMATORS:
        if name in record:
            found = record[name]
            size = f"   effective trajectories {found['effective']:.1f}" if name == "wdr" else ""
            print(f"{name:<8}{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]{size}")
    print(f"data    {record['behaviour_return']:.3f}, the mean of the data's own trajectories")
    if "measured" in record:
        found = record["measured"]
        error = "" if found["standard_error"] is None else f" +- {found['standard_error']:.3f}"
        cut = f", {found['cut']:.1%} of the episodes cut by the time limit" if found["cut"] else ""
        print(f"actual  {found['value']:.3f}{error} in the environment{cut}")
    for line in record["warnings"]:
        print(f"warning {line}")


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
