"""The learner behind data sets: Trimtab's own SAC, trained once into a run folder that later commands find again."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from trimtab import api
from trimtab.agents.sac import Config
from trimtab.core import AbstractPolicy
from trimtab.data.collect_policy import Choose, Learner, Training
from trimtab.training.compile import act

EVALUATIONS = 40
"""Evaluations of a run: how finely its stages are told apart."""


def train(training: Training, runs: Path) -> Learner:
    """Trains SAC in `runs`, or goes on where it was interrupted, or takes what is there."""
    config = Config(buffer_size=training.steps, learning_starts=training.learning_starts)
    if training.learning_rate is not None:
        config = replace(config, learning_rate=training.learning_rate)
    if training.target_entropy is not None:
        config = replace(config, target_entropy=training.target_entropy)
    found = [path.parent for path in runs.glob(f"*/sac/{training.name}/config.json") if _env(path) == training.env]
    if found:
        path = found[0]
        if not (path / "DONE").exists():
            api.resume(path)
    else:
        print(f"training SAC in {training.env} for {training.steps:,} steps, once for all of its data sets")
        run = api.train(
            "sac",
            training.env,
            steps=training.steps,
            seed=training.seed,
            config=config,
            eval_freq=max(1, training.steps // EVALUATIONS),
            checkpoint_freq=max(1, training.steps // 10),
            keep_evaluated=True,
            log=("csv",),
            out=runs,
            name=training.name,
        )
        path = run.path
    return _learner(path, training.seed)


def _env(config: Path) -> str:
    return api.read_config(config.parent)["env"]


def _learner(path: Path, seed: int) -> Learner:
    agent = lambda step: api.load(path, checkpoint_name=f"evaluated/step_{step}").agent
    return Learner(
        path=path,
        agent="sac",
        evaluations=_evaluations(path),
        explorer=lambda step: _choose(agent(step).explorer, seed),
        policy=lambda step: _choose(agent(step).policy, seed),
        replay=lambda: _replay(path),
    )


def _choose(policy: AbstractPolicy, seed: int) -> Choose:
    key = jax.random.key(seed)
    return lambda obs, timestep: np.asarray(act(policy, obs, key, np.int32(timestep)))


def _evaluations(path: Path) -> tuple[tuple[int, float], ...]:
    """(step, mean return) of each evaluation in `eval.csv`."""
    returns: dict[int, list[float]] = defaultdict(list)
    for line in (path / "eval.csv").read_text().splitlines()[1:]:
        step, _, value, *_ = line.split(",")
        returns[int(step)].append(float(value))
    return tuple((step, float(np.mean(values))) for step, values in sorted(returns.items()))


def _replay(path: Path) -> dict[str, np.ndarray]:
    """The rows of a run's buffer, which is as large as the run is long, so that none was overwritten."""
    _, _, buffer, _ = api.reopen(path)
    size, t = int(buffer.size), buffer.rows
    return {
        "observations": np.asarray(t.obs)[:size],
        "actions": np.asarray(t.action)[:size],
        "rewards": np.asarray(t.reward)[:size],
        "next_observations": np.asarray(t.next_obs)[:size],
        "terminals": np.asarray(t.discount)[:size] == 0.0,
    }
