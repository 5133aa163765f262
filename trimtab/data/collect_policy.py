"""Data sets of MuJoCo's tasks, collected by a learner at stages of its training.

A learner trains once per task. From its run come

- `random`: uniform actions;
- `medium`: the policy of the first evaluation at a third of the way from the random return to the final one;
- `medium-replay`: what the learner had stored until then;
- `expert`: the policy at the end.

Policies act with their exploration noise, as those behind D4RL's data did. The returns of uniform actions and of the
final policy without noise are stored with each set: they are what normalised scores refer to.
"""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core import UsageError
from trimtab.data.write import replace
from trimtab.envs.gym import Collector
from trimtab.envs.make import find

STAGES = ("random", "medium", "medium-replay", "expert")
"""What a task's data sets are called."""

MEDIUM = 1.0 / 3.0
"""Where on the way from the random return to the final one a policy is `medium`."""

REFERENCE_EPISODES = 50
"""Episodes behind each of the two returns that are stored."""


@dataclass(frozen=True)
class Task:
    """An environment, and how long it is trained in and recorded by default."""

    env: str
    steps: int = 200_000
    rows: int = 100_000
    learning_starts: int = 5_000


TASKS = {
    "ant": Task("Ant-v5"),
    "halfcheetah": Task("HalfCheetah-v5"),
    "hopper": Task("Hopper-v5"),
    "inverted-double-pendulum": Task("InvertedDoublePendulum-v5", 50_000, learning_starts=1_000),
    "inverted-pendulum": Task("InvertedPendulum-v5", 20_000, 50_000, 1_000),
    "pendulum": Task("Pendulum-v1", 20_000, 50_000, 100),
    "reacher": Task("Reacher-v5", 50_000, learning_starts=1_000),
    "swimmer": Task("Swimmer-v5"),
    "walker2d": Task("Walker2d-v5"),
}
"""What can be made. Pendulum is Gymnasium's, which needs no MuJoCo, and the quickest."""

NAMES = tuple(f"mujoco/{task}/{stage}-v0" for task in TASKS for stage in STAGES)
"""Minari's style."""

Choose = Callable[[np.ndarray, int], np.ndarray]
"""(observations (1, obs), time step) -> actions (1, act) in [-1, 1], random as a function of the time step."""

Tick = Callable[[str, int, int], None]
"""(what is being done, steps done, of how many)."""


@dataclass(frozen=True)
class Learner:
    """A finished training run that data are taken from."""

    path: Path
    """its run folder."""
    agent: str
    evaluations: tuple[tuple[int, float], ...]
    """(step, mean return of the policy without noise), the last one at the end."""
    explorer: Callable[[int], Choose]
    """the policy of the evaluation at a step, with its exploration noise."""
    policy: Callable[[int], Choose]
    """the same without noise."""
    replay: Callable[[], dict[str, np.ndarray]]
    """all rows it has stored, oldest first: observations, actions, rewards, next_observations and terminals."""


@dataclass(frozen=True)
class Training:
    """What a learner is asked to learn."""

    env: str
    steps: int
    seed: int
    learning_starts: int
    learning_rate: float | None = None
    """None: the agent's own."""
    target_entropy: float | None = None
    """None: the agent's own."""

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"seed-{self.seed}_steps-{self.steps}"


Train = Callable[[Training, Path], Learner]
"""Trains in a folder, or finds what is trained there already, going on from where it was interrupted."""


def collect(
    name: str, *, steps: int | None, rows: int | None, seed: int, runs: Path, train: Train, tick: Tick
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a data set of `NAMES`, and what its record says of it.

    `steps` of training and `rows` to collect default to the task's own; `medium-replay` has as many rows as the learner
    had stored. Raises `UsageError` if the learner got nowhere.
    """
    _, part, stage = name.removesuffix("-v0").split("/")
    task = TASKS[part]
    length = steps or task.steps
    learner = train(Training(task.env, length, seed, min(task.learning_starts, max(1, length // 10))), runs)
    references = _references(task.env, learner, seed, tick)
    step = 0 if stage == "random" else _step(stage, learner, references)
    count = rows or task.rows
    if stage == "random":
        arrays = rollout(task.env, None, count, _seed(seed, stage), lambda done: tick(name, done, count))
    elif stage == "medium-replay":
        arrays = _replay(learner, step)
    else:
        choose = learner.explorer(step)
        arrays = rollout(task.env, choose, count, _seed(seed, stage), lambda done: tick(name, done, count))
    returns = episode_returns(arrays)
    behaviour = {
        "agent": "uniform" if stage == "random" else learner.agent,
        "run": learner.path.relative_to(runs).as_posix(),
        "step": step,
        "mean_return": float(returns.mean()),
    }
    return arrays, {"env": task.env, "behaviour": behaviour, "references": references}


WALKER = Training("trimtab.envs.ogbench:ant_in_the_plane", 400_000, 0, 10_000, 1e-4, -4.0)
"""How an ant learns to walk where it is told: as OGBench's did, with half of SAC's usual target entropy."""


def walker(
    *, steps: int | None, seed: int, runs: Path, train: Train
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """The legs of an ant, trained once for all mazes: a function from (29,) to actions (8,); and what a record says."""
    length = steps or WALKER.steps
    learner = train(
        dataclasses.replace(
            WALKER, steps=length, seed=seed, learning_starts=min(WALKER.learning_starts, max(1, length // 10))
        ),
        runs,
    )
    step, mean = learner.evaluations[-1]
    choose = learner.policy(step)
    behaviour = {"agent": learner.agent, "run": learner.path.relative_to(runs).as_posix(), "step": step}
    return lambda obs: choose(obs[None], 0)[0], {"walker": behaviour | {"mean_return": mean}}


def _seed(seed: int, stage: str) -> int:
    return int(np.random.SeedSequence([seed, STAGES.index(stage)]).generate_state(1)[0]) % 2**31


def _step(stage: str, learner: Learner, references: dict[str, Any]) -> int:
    """The step of the policy of a stage."""
    final = learner.evaluations[-1][0]
    if stage == "expert":
        return final
    random, expert = references["random"], references["expert"]
    if not expert > random:
        raise UsageError(
            f"{learner.path} learnt nothing: its return is {expert:.1f}, at random {random:.1f}; give more --steps"
        )
    enough = random + MEDIUM * (expert - random)
    return next((step for step, mean in learner.evaluations if mean >= enough), final)


def _references(env: str, learner: Learner, seed: int, tick: Tick) -> dict[str, Any]:
    """The returns of uniform actions and of the final policy; found once and kept in the run's folder."""
    file = learner.path / "references.json"
    if file.exists():
        return json.loads(file.read_text())
    found: dict[str, Any] = {"episodes": REFERENCE_EPISODES}
    final = learner.policy(learner.evaluations[-1][0])
    for i, (label, choose) in enumerate({"random": None, "expert": final}.items()):
        show = lambda done, label=label: tick(f"return of {label}", done, REFERENCE_EPISODES)
        found[label] = float(np.mean(_returns(env, choose, REFERENCE_EPISODES, seed + 20_000 + i, show)))
    replace(file, lambda temporary: temporary.write_text(json.dumps(found) + "\n"))
    return found


class _Steps:
    """An environment stepped on and on, with a policy or (None) with uniform actions."""

    def __init__(self, env: str, choose: Choose | None, seed: int) -> None:
        world = find(env)
        if world.make is None or world.spec.discrete or isinstance(world.spec.obs, dict):
            raise UsageError(f"{env} must be a Gymnasium environment with vectors for observations and actions")
        make = world.make
        self.collector = Collector(lambda: make(None), 1, world.spec, seed, recorded=True)
        self._uniform, self._shape = np.random.default_rng(seed), (1, world.spec.action_size)
        self._choose, self._taken = choose, 0

    def __call__(self) -> tuple[Any, bool]:
        """The next transition (leading axis 1) and whether it ended its episode."""
        if self._choose is None:
            action = self._uniform.uniform(-1.0, 1.0, self._shape).astype(np.float32)
        else:
            action = self._choose(self.collector.obs, self._taken)
        row = self.collector.step(action, self._taken)
        self._taken += 1
        return row.transition, bool(row.last[0])  # pyright: ignore[reportAttributeAccessIssue]


def rollout(
    env: str, choose: Choose | None, rows: int, seed: int, show: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """`rows` transitions with D4RL's names, episode after episode; the last one is cut where the rows end."""
    if rows < 1:
        raise UsageError(f"rows must be at least 1, got {rows}")
    steps, arrays = _Steps(env, choose, seed), {}
    try:
        for i in range(rows):
            t, last = steps()
            row = {
                "observations": t.obs[0],
                "actions": np.clip(t.action[0], -1.0, 1.0),
                "rewards": t.reward[0],
                "next_observations": t.next_obs[0],
                "terminals": t.discount[0] == 0.0,
                "timeouts": (last or i == rows - 1) and t.discount[0] != 0.0,
            }
            if not arrays:
                kinds = {name: bool if name in ("terminals", "timeouts") else np.float32 for name in row}
                arrays = {name: np.empty((rows, *np.shape(x)), kinds[name]) for name, x in row.items()}
            for name, x in row.items():
                arrays[name][i] = x
            if (i + 1) % 1000 == 0 or i == rows - 1:
                show(i + 1)
    finally:
        steps.collector.close()
    return arrays


def _returns(env: str, choose: Choose | None, episodes: int, seed: int, show: Callable[[int], None]) -> list[float]:
    """The returns of whole episodes."""
    steps, found, total = _Steps(env, choose, seed), [], 0.0
    try:
        while len(found) < episodes:
            t, last = steps()
            total += float(t.reward[0])
            if last:
                found.append(total)
                total = 0.0
                show(len(found))
    finally:
        steps.collector.close()
    return found


def _replay(learner: Learner, step: int) -> dict[str, np.ndarray]:
    """What the learner had stored after `step` steps. An episode ends where the next row begins elsewhere."""
    arrays = {name: array[:step] for name, array in learner.replay().items()}
    elsewhere = (arrays["next_observations"][:-1] != arrays["observations"][1:]).any(1)
    return arrays | {"timeouts": np.append(elsewhere, True) & ~arrays["terminals"]}


def episode_returns(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The return of each whole episode; what the end of the data cut off does not count unless it is all there is."""
    last = arrays["terminals"] | arrays["timeouts"]
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    returns = np.add.reduceat(arrays["rewards"].astype(np.float64), starts)
    return returns[:-1] if len(returns) > 1 and not arrays["terminals"][-1] else returns
