"""Three worlds with goals (Levine and Feizi 2023, arXiv:2208.13298): one goal of many numbers, or many goals at once.

ContinuousSeek, d numbers to bring to theirs, 10 steps; s starts at 0, the goal g is uniform on [-5, 5]^d:

    s' = clip(s + clip(a, -1, 1), -5, 5);  r = 0 if max_i |s'_i - g_i| <= 0.1, else -1

An episode goes on when the goal is reached. The best action is clip(g - s, -1, 1), which needs five steps at most.

DriveSeek, a car that turns on a torus of 21 x 21 cells, 40 steps; p starts at 0, the angle at 0:

    angle' = angle + 0.5 clip(a, -1, 1);  p' = wrap(p + (cos angle', sin angle'))

NoisySeek, a point that drifts, 40 steps:

    a <- a / max(1, |a|);  p' = p + a + n,  n standard normal

Both have a set of up to 200 goals, cells of the plane, and r = 1 where p' rounds to one of them, else 0. Goals stay
when they are reached. DriveSeek's are drawn from its cells; NoisySeek's lie in clusters. A set is a vector of rows
(b, x, y), with b = 1 for a goal and zeros for the rest; what the set holds does not depend on the order of its rows.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from trimtab.core import Spec, Step, UsageError
from trimtab.envs.goals import AbstractGoalEnv, goal_obs, goal_spec

ROW = 3
"""Numbers of a row (b, x, y)."""


class ContinuousSeek(AbstractGoalEnv):
    """See the module's docstring. The observation and the achieved goal are s; the state is s and g."""

    bound: Float[Array, ""]
    """half the side of the box."""
    tolerance: Float[Array, ""]
    """distance in each number that counts as reaching the goal."""
    dimension: int = eqx.field(static=True)

    max_steps: ClassVar[int] = 10

    @classmethod
    def create(cls, dimension: int, bound: float = 5.0, tolerance: float = 0.1) -> "ContinuousSeek":
        """`dimension` numbers. Raises `UsageError` for none."""
        if dimension < 1:
            raise UsageError(f"ContinuousSeek needs at least one dimension, got {dimension}")
        bound_, near = jnp.float32(bound), jnp.float32(tolerance)
        return cls(bound=bound_, tolerance=near, dimension=dimension)  # pyright: ignore[reportCallIssue]

    @property
    def spec(self) -> Spec:
        """The lengths of the observation's parts and of the action."""
        return goal_spec(self.dimension, self.dimension, self.dimension, self.dimension)

    def reset(self, key: PRNGKeyArray) -> tuple[tuple[Array, Array], dict[str, Array]]:
        s = jnp.zeros((self.dimension,))
        goal = self.bound * jr.uniform(key, (self.dimension,), minval=-1.0, maxval=1.0)
        return (s, goal), goal_obs(s, goal, s)

    def step(self, state: tuple[Array, Array], action: Array, key: PRNGKeyArray) -> tuple[tuple[Array, Array], Step]:
        s, goal = state
        s = jnp.clip(s + jnp.clip(action, -1.0, 1.0), -self.bound, self.bound)
        return (s, goal), _step(self, s, goal, s, reached=0.0)

    def reward(self, achieved: Float[Array, " d"], goal: Float[Array, " d"]) -> Float[Array, ""]:
        reached = jnp.abs(achieved - goal).max() <= self.tolerance
        return jnp.where(reached, 0.0, -1.0)


class DriveSeek(AbstractGoalEnv):
    """See the module's docstring. The observation is (p, cos angle, sin angle); the state is p, the angle and the set.

    The cells are those of {-half, ..., half}^2.
    """

    speed: Float[Array, ""]
    turn: Float[Array, ""]
    """the largest change of the angle in a step."""
    half: int = eqx.field(static=True)
    max_goals: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    @classmethod
    def create(
        cls, half: int = 10, max_goals: int = 200, max_steps: int = 40, speed: float = 1.0, turn: float = 0.5
    ) -> "DriveSeek":
        """The paper's world by default. Raises `UsageError` for more goals than there are cells."""
        cells = (2 * half + 1) ** 2
        if not 1 <= max_goals <= cells:
            raise UsageError(f"max_goals must be between 1 and the {cells} cells, got {max_goals}")
        sizes = dict(half=half, max_goals=max_goals, max_steps=max_steps)
        return cls(speed=jnp.float32(speed), turn=jnp.float32(turn), **sizes)  # pyright: ignore

    @property
    def spec(self) -> Spec:
        """The lengths of the observation's parts and of the action."""
        return goal_spec(2, ROW * self.max_goals, 4, 1)

    def reset(self, key: PRNGKeyArray) -> tuple[tuple[Array, Array, Array], dict[str, Array]]:
        k_count, k_cells = jr.split(key)
        side = 2 * self.half + 1
        count = jr.randint(k_count, (), 1, self.max_goals + 1)
        chosen = jr.permutation(k_cells, side * side)[: self.max_goals]
        present = jnp.arange(self.max_goals) < count
        order = jnp.sort(jnp.where(present, chosen, side * side))  # the absent ones come last
        cells = jnp.stack([order // side, order % side], axis=-1).astype(jnp.float32) - float(self.half)
        goals, p, angle = _rows(present, cells), jnp.zeros((2,)), jnp.zeros(())
        return (p, angle, goals), self._obs(p, angle, goals)

    def step(
        self, state: tuple[Array, Array, Array], action: Array, key: PRNGKeyArray
    ) -> tuple[tuple[Array, Array, Array], Step]:
        p, angle, goals = state
        angle = angle + self.turn * jnp.clip(action[0], -1.0, 1.0)
        p = self._wrap(p + self.speed * jnp.stack([jnp.cos(angle), jnp.sin(angle)]))
        obs = self._obs(p, angle, goals)
        return (p, angle, goals), _step(self, obs["achieved_goal"], goals, obs["observation"], reached=1.0)

    def _wrap(self, p: Float[Array, "2"]) -> Float[Array, "2"]:
        side = 2.0 * self.half + 1.0
        lifted = jnp.mod(p + 0.5 * side, side)
        # The remainder of a tiny negative number rounds up to the side itself, which is the other end of the torus.
        return jnp.where(lifted >= side, 0.0, lifted) - 0.5 * side

    def _obs(self, p: Array, angle: Array, goals: Array) -> dict[str, Array]:
        # The border -half - 1/2 may round away from the torus: it belongs to the cell -half.
        cell = jnp.clip(jnp.round(p), -float(self.half), float(self.half))
        return goal_obs(cell, goals, jnp.concatenate([p, jnp.stack([jnp.cos(angle), jnp.sin(angle)])]))

    def reward(self, achieved: Float[Array, "2"], goal: Float[Array, " rows"]) -> Float[Array, ""]:
        return hits(achieved, goal).any().astype(jnp.float32)


class NoisySeek(AbstractGoalEnv):
    """See the module's docstring. The observation is p; the state is p and the set.

    Of `max_goals` or fewer draws, each belongs to one of c clusters, c geometric; the clusters' shares are uniform on
    the simplex, their centres have standard deviation 10, the goals 2 around their centre. Goals that round to the same
    cell count once.
    """

    noise: Float[Array, ""]
    """standard deviation of a step's noise."""
    max_goals: int = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    @classmethod
    def create(cls, max_goals: int = 200, max_steps: int = 40, noise: float = 1.0) -> "NoisySeek":
        """The paper's world by default. Raises `UsageError` without goals."""
        if max_goals < 1:
            raise UsageError(f"max_goals must be at least 1, got {max_goals}")
        sizes = dict(max_goals=max_goals, max_steps=max_steps)
        return cls(noise=jnp.float32(noise), **sizes)  # pyright: ignore

    @property
    def spec(self) -> Spec:
        """The lengths of the observation's parts and of the action."""
        return goal_spec(2, ROW * self.max_goals, 2, 2)

    def reset(self, key: PRNGKeyArray) -> tuple[tuple[Array, Array], dict[str, Array]]:
        p, goals = jnp.zeros((2,)), _clustered(key, self.max_goals)
        return (p, goals), goal_obs(jnp.round(p), goals, p)

    def step(self, state: tuple[Array, Array], action: Array, key: PRNGKeyArray) -> tuple[tuple[Array, Array], Step]:
        p, goals = state
        a = jnp.clip(action, -1.0, 1.0)
        a = a / jnp.maximum(1.0, jnp.linalg.norm(a))
        p = p + a + self.noise * jr.normal(key, (2,))
        return (p, goals), _step(self, jnp.round(p), goals, p, reached=1.0)

    def reward(self, achieved: Float[Array, "2"], goal: Float[Array, " rows"]) -> Float[Array, ""]:
        return hits(achieved, goal).any().astype(jnp.float32)


def hits(achieved: Float[Array, "*b 2"], goal: Float[Array, "*b rows"]) -> Bool[Array, "*b n"]:
    """Which rows of a set are present and at `achieved`."""
    rows = goal.reshape(*goal.shape[:-1], -1, ROW)
    at = (rows[..., 1:] == jnp.broadcast_to(achieved[..., None, :], rows[..., 1:].shape)).all(-1)
    return (rows[..., 0] > 0.5) & at


def _step(env: AbstractGoalEnv, achieved: Array, goal: Array, observation: Array, reached: float) -> Step:
    """A step that never ends the episode; a success if it pays `reached`."""
    reward = env.reward(achieved, goal)
    no = jnp.asarray(False)
    return Step(goal_obs(achieved, goal, observation), reward, no, no, {"success": reward == reached})


def _rows(present: Bool[Array, " n"], cells: Float[Array, "n 2"]) -> Float[Array, " rows"]:
    """The set as one vector of rows (b, x, y), zeros where absent."""
    rows = jnp.concatenate([jnp.ones((cells.shape[0], 1)), cells], axis=-1)
    return jnp.where(present[:, None], rows, 0.0).reshape(-1)


def _clustered(key: PRNGKeyArray, n: int) -> Float[Array, " rows"]:
    """Goals in clusters, each once, present rows first."""
    k_draws, k_clusters, k_shares, k_member, k_centres, k_goals = jr.split(key, 6)
    drawn = jnp.arange(n) < jr.randint(k_draws, (), 1, n + 1)
    # Geometric from 1 on, cut at n clusters: beyond 200 lies a share of 1e-14.
    clusters = 1 + jnp.floor(jnp.log(jr.uniform(k_clusters, minval=1e-30)) / jnp.log(0.85)).astype(jnp.int32)
    # Exponential variables over their sum are uniform on the simplex; members drawn by them have multinomial sizes.
    shares = jnp.where(jnp.arange(n) < clusters, jnp.log(jr.exponential(k_shares, (n,)) + 1e-30), -jnp.inf)
    member = jr.categorical(k_member, shares, shape=(n,))
    centres = 10.0 * jr.normal(k_centres, (n, 2))
    cells = jnp.round(centres[member] + 2.0 * jr.normal(k_goals, (n, 2)))
    # Sort by x, then y, absent ones last, so that equal cells are neighbours; then the first of each comes first.
    order = jnp.lexsort((cells[:, 1], cells[:, 0], ~drawn))
    cells, drawn = cells[order], drawn[order]
    same = jnp.concatenate([jnp.zeros((1,), bool), (cells[1:] == cells[:-1]).all(-1)])
    present = drawn & ~same
    first = jnp.argsort(~present, stable=True)
    return _rows(present[first], cells[first])
