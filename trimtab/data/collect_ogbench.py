"""Data sets of OGBench, collected here: scripted oracles in manipulation, shortest paths in mazes.

A point walks into any direction by itself. An ant must have learnt it: its legs are a policy trained in the plane.

The environments and oracles are OGBench's; the loops around them follow its paper's description and its file format
(arXiv:2410.20092). An episode is a function of (seed, split, number), so a longer data set begins with a shorter one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.core import UsageError
from trimtab.envs import ogbench

Arrays = dict[str, np.ndarray]

SIGMA = {"pointmaze": 0.5, "antmaze": 0.2}
"""Standard deviation of the noise on actions; `explore` has 1."""

Walk = Callable[[Any, np.ndarray], np.ndarray]
"""(bare environment, unit vector of where to go (2,)) -> the action, in [-1, 1]."""

_STACK = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
"""Cubes -> range of an episode's probability that a target lies on top of another cube."""


@dataclass(frozen=True)
class Recipe:
    """How a data set is collected. `episodes` training episodes and a tenth of it for validation, of `steps` rows."""

    name: str
    episodes: int
    steps: int = 1001


def _recipes() -> dict[str, Recipe]:
    found: list[Recipe] = []
    for kind in ("play", "noisy"):
        for cubes in _STACK:
            found.append(Recipe(f"cube-{cubes}-{kind}-v0", {"triple": 3000, "quadruple": 5000}.get(cubes, 1000)))
        found.append(Recipe(f"scene-{kind}-v0", 1000))
        for size in ("3x3", "4x4", "4x5", "4x6"):
            found.append(Recipe(f"puzzle-{size}-{kind}-v0", {"4x5": 3000, "4x6": 5000}.get(size, 1000)))
    for maze in ("medium", "large", "giant", "teleport"):
        long = maze == "giant"  # its paths need more steps; as many rows in all
        found.append(Recipe(f"pointmaze-{maze}-navigate-v0", 500 if long else 1000, 2001 if long else 1001))
        found.append(Recipe(f"pointmaze-{maze}-stitch-v0", 5000, 201))
        found.append(Recipe(f"antmaze-{maze}-navigate-v0", 500 if long else 1000, 2001 if long else 1001))
        found.append(Recipe(f"antmaze-{maze}-stitch-v0", 5000, 201))
        if maze in ("medium", "large"):
            found.append(Recipe(f"antmaze-{maze}-explore-v0", 10000, 501))
            found.append(Recipe(f"pointmaze-{maze}-explore-v0", 10000, 501))  # ours: navigating leaves corners out
    return {recipe.name: recipe for recipe in found}


RECIPES = _recipes()
"""Data sets that can be collected, with OGBench's own sizes."""

Tick = Callable[[int, int], None]
"""(episodes done, of how many)."""


def needs_walker(recipe: Recipe) -> bool:
    """Whether the data are of a body whose legs must have been trained."""
    return recipe.name.startswith("antmaze-")


def collect(
    recipe: Recipe, split: int, episodes: int, seed: int, tick: Tick, walker: Callable[[np.ndarray], np.ndarray] | None
) -> Arrays:
    """`episodes` episodes in OGBench's format, every row with the state before its action: float32 observations,
    actions, qpos, qvel; bool terminals, set on the last row of each episode; int64 button_states where there are
    buttons. `split` is 0 for training, 1 for validation. `walker` maps what an ant feels and where it shall go, (29,),
    to its action, (8,).
    """
    family, *_, kind, _ = recipe.name.split("-")
    limits: dict[str, Any] = {"terminate_at_goal": False, "max_episode_steps": recipe.steps}
    if family in SIGMA:
        env = ogbench.make_bare(recipe.name, limits)
        walk = _straight if walker is None else _legs(walker)
        episode = lambda number: _maze(env, kind, walk, SIGMA[family])
    else:
        env = ogbench.make_bare(recipe.name, limits | {"mode": "data_collection"})
        script = _Script.create(env, recipe.name)
        episode = lambda number: script.episode(number)
    found: list[Arrays] = []
    try:
        for i in range(episodes):
            number = int(np.random.SeedSequence([seed, split, i]).generate_state(1)[0])
            state = np.random.RandomState(number).get_state()
            with ogbench.global_numpy(state), ogbench.quiet():  # the oracles and the mazes draw from it
                found.append(episode(number))
            tick(i + 1, episodes)
    finally:
        env.close()
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


class _Rows:
    """The rows of one episode."""

    def __init__(self) -> None:
        self._rows: list[tuple[np.ndarray, ...]] = []

    def add(self, obs: np.ndarray, action: np.ndarray, done: bool, info: dict[str, Any]) -> None:
        """The observation and the action; `info` after the step holds the state before it."""
        buttons = (info["prev_button_states"],) if "prev_button_states" in info else ()
        self._rows.append((obs, action, np.array(done), info["prev_qpos"], info["prev_qvel"], *buttons))

    def arrays(self) -> Arrays:
        """The rows in the types of the file format."""
        names = ("observations", "actions", "terminals", "qpos", "qvel", "button_states")
        types = (np.float32, np.float32, bool, np.float32, np.float32, np.int64)
        columns = zip(names, types, zip(*self._rows, strict=True), strict=False)
        return {name: np.stack(column).astype(kind) for name, kind, column in columns}


# Manipulation


@dataclass(frozen=True)
class _Script:
    """Scripted oracles that carry out one random task after another."""

    env: Any
    agents: dict[str, Any]
    noisy: bool
    random: float
    """probability of a random action, noisy data only."""
    stack: tuple[float, float]
    scene: bool

    @classmethod
    def create(cls, env: Any, name: str) -> "_Script":
        family, size, *_ = name.split("-")
        noisy = "-noisy-" in name
        made, kind = ogbench.oracles(), "markov" if noisy else "plan"
        common: dict[str, Any] = {"env": env} | ({"min_norm": 0.4} if noisy else {"noise": 0.1, "noise_smoothing": 0.5})
        closed = {"gripper_always_closed": True} if family == "puzzle" else {}
        patience = {"max_step": 100} if noisy and family == "scene" else {}
        agents = {
            "cube": {"cube": patience},
            "scene": {"cube": patience, "button": {}, "drawer": {}, "window": {}},
            "puzzle": {"button": closed},
        }[family]
        return cls(
            env=env,
            agents={part: made[f"{kind}/{part}"](**common, **extra) for part, extra in agents.items()},
            noisy=noisy,
            random=0.2 if family == "puzzle" else 0.1,
            stack=_STACK.get(size, (0.5, 0.5)),
            scene=family == "scene",
        )

    def episode(self, seed: int) -> Arrays:
        """One episode; in a scene, one in which no cube left the places from which it can be fetched."""
        for attempt in range(1000):
            rows = self._attempt((seed + attempt) % 2**32)
            if not self.scene or not _cube_lost(rows["qpos"][:, 14:17]):
                return rows
        raise UsageError(f"no usable episode of {self.env.spec.id} in 1000 tries: choose another --seed")

    def _attempt(self, seed: int) -> Arrays:
        draw: Any = np.random  # the generator of the oracles, seeded by the caller
        env, rows, done = self.env, _Rows(), False
        obs, info = env.reset(seed=seed)
        p_stack, xi = draw.uniform(*self.stack), draw.uniform(0.0, 0.1)
        scale = xi * np.array([1.0, 1.0, 1.0, 3.0, 10.0])
        agent = self._next(obs, info)
        while not done:
            if self.noisy and draw.uniform() < self.random:
                action = draw.uniform(-1.0, 1.0, 5)
            else:
                action = np.asarray(agent.select_action(obs, info))
                action = action + draw.normal(0.0, scale) if self.noisy else action
            action = np.clip(action, -1.0, 1.0)
            after, _, terminated, truncated, info = env.step(action)
            done = terminated or truncated
            rows.add(obs, action, done, info)
            obs = after
            if agent.done:
                target_obs, target_info = env.unwrapped.set_new_target(p_stack=p_stack)
                agent = self._next(target_obs, target_info)
                info = info | {name: value for name, value in target_info.items() if name.startswith("privileged/")}
        return rows.arrays()

    def _next(self, obs: np.ndarray, info: dict[str, Any]) -> Any:
        agent = self.agents[info["privileged/target_task"]]
        agent.reset(obs, info)
        return agent


def _cube_lost(xyz: np.ndarray) -> bool:
    """Whether a cube went behind the drawer, or in front of it at a height that is not the drawer's."""
    _, y, z = xyz.T
    return bool(((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))).any())


# Mazes


def _straight(env: Any, way: np.ndarray) -> np.ndarray:
    """A point goes where it is told."""
    return way


def _legs(walker: Callable[[np.ndarray], np.ndarray]) -> Walk:
    """An ant, told where to go in the place of where it is."""
    return lambda env, way: walker(np.concatenate([env.get_ob()[2:], way]).astype(np.float32))


def _maze(env: Any, kind: str, walk: Walk, sigma: float) -> Arrays:
    """One episode of a body that heads for the next cell on a shortest path to its goal.

    navigate: from any cell to random corners and crossings, one after the other; stitch: to one goal four cells away;
    explore: no goal, another direction every ten steps, and noise of 1.
    """
    draw: Any = np.random  # the generator of the mazes, seeded by the caller
    bare, rows, done, step = env.unwrapped, _Rows(), False, 0
    cells, corners = _cells(bare.maze_map)
    choose = lambda places: places[draw.randint(len(places))]
    start = choose(cells)
    goal = choose(_at_distance(bare.maze_map, start, 4) or [start]) if kind == "stitch" else choose(corners)
    obs, _ = env.reset(seed=int(draw.randint(2**31)), options={"task_info": {"init_ij": start, "goal_ij": goal}})
    way = np.zeros(2)
    while not done:
        if kind != "explore":
            way = bare.get_oracle_subgoal(bare.get_xy(), bare.cur_goal_xy)[0] - bare.get_xy()
        elif step % 10 == 0:
            way = draw.normal(size=2)
        action = walk(bare, way / (np.linalg.norm(way) + 1e-6))
        action = np.clip(action + draw.normal(0.0, 1.0 if kind == "explore" else sigma, action.shape), -1.0, 1.0)
        after, _, terminated, truncated, info = env.step(action)
        done, step = terminated or truncated, step + 1
        rows.add(obs, action, done, info)
        obs = after
        if info["success"] and kind == "navigate":
            bare.set_goal(goal_xy=np.asarray(bare.add_noise(bare.ij_to_xy(choose(corners)))))
    return rows.arrays()


def _neighbours(free: np.ndarray, cell: tuple[int, int]) -> Iterator[tuple[int, int]]:
    for di, dj in ((-1, 0), (0, -1), (1, 0), (0, 1)):
        i, j = cell[0] + di, cell[1] + dj
        if 0 <= i < free.shape[0] and 0 <= j < free.shape[1] and free[i, j]:
            yield i, j


def _cells(maze: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """All free cells (0), and those that are no straight corridor."""
    free = maze == 0
    cells = [(int(i), int(j)) for i, j in np.argwhere(free)]

    def straight(cell: tuple[int, int]) -> bool:
        around = list(_neighbours(free, cell))
        return len(around) == 2 and (around[0][0] == around[1][0] or around[0][1] == around[1][1])

    return cells, [cell for cell in cells if not straight(cell)]


def _at_distance(maze: np.ndarray, start: tuple[int, int], steps: int) -> list[tuple[int, int]]:
    """The free cells that a shortest path from `start` reaches in that many steps."""
    free, seen, front = maze == 0, {start}, [start]
    for _ in range(steps):
        front = list(dict.fromkeys(n for cell in front for n in _neighbours(free, cell) if n not in seen))
        seen.update(front)
    return front
