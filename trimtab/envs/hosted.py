"""Own worlds as Gymnasium environments: for other libraries, and to compare both ways of stepping a world.

Importing this file registers every own world with Gymnasium under its id. So
`gymnasium.make("trimtab.envs.hosted:trimtab/ContinuousSeek10-v0")` makes one, and `trimtab train --env` takes the same
name to step it on the host.
"""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from gymnasium import spaces

from trimtab.core import AbstractEnv, Spec, UsageError
from trimtab.envs.goals import AbstractGoalEnv
from trimtab.envs.register import worlds
from trimtab.envs.wrappers import TimeLimit


class Hosted(gymnasium.Env):
    """An own world behind Gymnasium's interface, with its time limit. Actions are in [-1, 1].

    `info["is_success"]` says whether any step of the episode so far was a success; of a world that moves joints there
    are also `info["target"]`, what they are driven to, and `info["position"]`, where they are.
    """

    def __init__(self, world: AbstractEnv) -> None:
        self.world = world
        spec = world.spec
        box = lambda leaf: spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)
        self.observation_space = (
            spaces.Dict({name: box(leaf) for name, leaf in spec.obs.items()})
            if isinstance(spec.obs, dict)
            else box(spec.obs)
        )
        self.action_space = _action_space(spec)
        limited = TimeLimit(world)
        self._reset = jax.jit(lambda key: limited.reset(key))
        self._step = jax.jit(lambda state, action, key: limited.step(state, action, key))
        self._state: Any = None
        self._success = False

    def _key(self) -> np.integer:
        return self.np_random.integers(2**31)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """A new episode."""
        super().reset(seed=seed)
        self._success = False
        self._state, obs = self._reset(jr.key(self._key()))
        return jax.device_get(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of the world."""
        kind = np.int32 if self.world.spec.discrete else np.float32
        self._state, out = self._step(self._state, np.asarray(action, kind), jr.key(self._key()))
        out = jax.device_get(out)
        info: dict[str, Any] = {}
        if "success" in out.info:
            self._success = self._success or bool(out.info["success"])
            info = {"is_success": self._success}
        info |= {name: out.info[name] for name in ("target", "position") if name in out.info}
        return out.obs, float(out.reward), bool(out.terminated), bool(out.truncated), info

    def compute_reward(self, achieved_goal: Any, desired_goal: Any, info: Any) -> np.ndarray:
        """What a step pays that leads to `achieved_goal` while `desired_goal` is wanted; leading axes are free.

        Raises `UsageError` for a world without goals.
        """
        world = self.world
        if not isinstance(world, AbstractGoalEnv):
            raise UsageError(f"{type(world).__name__} has no goals: its reward cannot be computed for another one")
        reward = world.reward
        for _ in np.shape(achieved_goal)[:-1]:
            reward = jax.vmap(reward)
        return np.asarray(reward(jnp.asarray(achieved_goal, jnp.float32), jnp.asarray(desired_goal, jnp.float32)))


def _action_space(spec: Spec) -> spaces.Space:
    if spec.factors:
        return spaces.MultiDiscrete(list(spec.factors))
    return spaces.Discrete(spec.action_size) if spec.discrete else spaces.Box(-1.0, 1.0, (spec.action_size,))


def host(name: str) -> Hosted:
    """The registered own world of that name."""
    return Hosted(worlds()[name]())


for _name in worlds():
    if _name not in gymnasium.registry:
        gymnasium.register(_name, entry_point="trimtab.envs.hosted:host", kwargs={"name": _name})
