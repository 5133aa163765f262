"""Two ways round a wall: a small world for offline and offline-to-online learning, and scripted data for it.

A point in [-1, 1]^2 goes from the middle of the lower edge to the middle of the upper one, where a square wall in the
middle must be passed on the left or on the right. With action a in [-1, 1]^2 and n standard normal:

    q = clip(p + 0.1 a + 0.005 n, -1, 1);  p' = p if |q_x| < 0.35 and |q_y| < 0.35, else q

Reward 0 and the end where p' is closer than 0.15 to the goal (0, 0.8), -1 elsewhere; 60 steps at most. The scripted
behaviour takes either side, so at the start the mean of its actions leads into the wall, which tells an expressive
policy from a Gaussian one where it plans many steps at once. It also goes slowly, so that there is something to gain:
an episode needs some 23 steps, its mean is 34.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step, UsageError

_START, _GOAL = (0.0, -0.8), (0.0, 0.8)


class TwoRoute(AbstractEnv):
    """See the module's docstring. The observation is the position p."""

    reach: Float[Array, ""]
    """length of a step with an action of length 1."""
    noise: Float[Array, ""]
    """standard deviation of a step's noise."""
    start_noise: Float[Array, ""]
    """standard deviation of the start around (0, -0.8)."""
    wall: Float[Array, ""]
    """half the side of the wall."""
    tolerance: Float[Array, ""]
    """distance from the goal that counts as reaching it."""

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 2, False, (-1.0, -1.0), (1.0, 1.0))
    max_steps: ClassVar[int] = 60

    @classmethod
    def create(
        cls,
        reach: float = 0.1,
        noise: float = 0.005,
        start_noise: float = 0.05,
        wall: float = 0.35,
        tolerance: float = 0.15,
    ) -> "TwoRoute":
        """The world with those lengths; the plane is 2 wide."""
        return cls(*map(jnp.float32, (reach, noise, start_noise, wall, tolerance)))

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        p = jnp.asarray(_START) + self.start_noise * jr.normal(key, (2,))
        return p, p

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        moved = state + self.reach * jnp.clip(action, -1.0, 1.0) + self.noise * jr.normal(key, (2,))
        q = jnp.clip(moved, -1.0, 1.0)
        p = jnp.where((jnp.abs(q) < self.wall).all(), state, q)
        success = jnp.linalg.norm(p - jnp.asarray(_GOAL)) < self.tolerance
        reward = jnp.where(success, 0.0, -1.0)
        return p, Step(p, reward, success, jnp.asarray(False), {"success": success})


@dataclass(frozen=True)
class Behaviour:
    """How the scripted data of TwoRoute are made."""

    episodes: int = 400
    steps: int = 60
    """time limit of an episode."""
    left: float = 0.5
    """share of the episodes that pass the wall on the left."""
    slowest: float = 0.3
    """least length of an action, uniform over episodes."""
    fastest: float = 1.0
    """largest length of an action before the noise."""


VARIANTS: Mapping[str, Behaviour] = {
    "two-route": Behaviour(),
    "two-route-one-sided": Behaviour(left=1.0),
    "two-route-slow": Behaviour(steps=120, slowest=0.2, fastest=0.45),
    "two-route-sparse": Behaviour(episodes=100),
}
"""The data sets of TwoRoute by name."""

_NEAR = 0.12
"""Distance from a way-point at which the next one is headed for."""


def demonstrations(behaviour: Behaviour, seed: int) -> dict[str, np.ndarray]:
    """Scripted transitions, episode after episode: observations (n, 2), actions (n, 2), rewards, terminals, timeouts
    (n,), next_observations (n, 2).

    An episode heads for the point (0.6, -0.35) on its side of the wall, for (0.6, 0.35), then for the goal, with
    actions of its own length plus 0.1 n, clipped.
    """
    if behaviour.episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {behaviour.episodes}")
    keys = jr.split(jr.key(seed), behaviour.episodes)
    p, action, out = _episodes(TwoRoute.create(), behaviour, keys)
    terminated = np.asarray(out.terminated)
    index = np.arange(behaviour.steps)
    length = np.where(terminated.any(1), terminated.argmax(1) + 1, behaviour.steps)
    lived = index[None, :] < length[:, None]
    cut = (index[None, :] == behaviour.steps - 1) & ~terminated
    arrays = {
        "observations": p,
        "actions": action,
        "rewards": out.reward,
        "terminals": terminated,
        "timeouts": cut,
        "next_observations": out.obs,
    }
    return {name: np.asarray(array)[lived] for name, array in arrays.items()}


@partial(jax.jit, static_argnums=1)
def _episodes(world: TwoRoute, behaviour: Behaviour, keys: Array) -> tuple[Array, Array, Step]:
    """Positions, actions and steps (episodes, steps, ...), which go on after the goal has been reached."""

    def episode(key: PRNGKeyArray) -> tuple[Array, Array, Step]:
        k_side, k_speed, k_reset, k_run = jr.split(key, 4)
        side = jnp.where(jr.bernoulli(k_side, behaviour.left), -1.0, 1.0)
        speed = jr.uniform(k_speed, minval=behaviour.slowest, maxval=behaviour.fastest)
        points = jnp.asarray([(0.6, -0.35), (0.6, 0.35), _GOAL]) * jnp.stack([side, jnp.ones(())])[None, :]

        def body(carry: tuple[Array, Array], k: PRNGKeyArray) -> tuple[tuple[Array, Array], tuple[Array, Array, Step]]:
            p, target = carry
            k_noise, k_step = jr.split(k)
            target = jnp.where(jnp.linalg.norm(points[target] - p) < _NEAR, jnp.minimum(target + 1, 2), target)
            way = points[target] - p
            unit = way / jnp.maximum(jnp.linalg.norm(way), 1e-6)
            action = jnp.clip(speed * unit + 0.1 * jr.normal(k_noise, (2,)), -1.0, 1.0)
            after, out = world.step(p, action, k_step)
            return (after, target), (p, action, out)

        _, rows = jax.lax.scan(body, (world.reset(k_reset)[0], jnp.int32(0)), jr.split(k_run, behaviour.steps))
        return rows

    return jax.vmap(episode)(keys)
