"""Small worlds whose every number a test can foresee."""

from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step


class Walk(AbstractEnv):
    """x moves by half the action plus noise; ends below -0.3, is cut after 5 steps; reward x. Obs: x and its age."""

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1, False, (-1.0,), (1.0,))
    max_steps: ClassVar[int] = 5

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        state = jnp.stack([jr.uniform(key, minval=-0.2, maxval=0.5), jnp.zeros(())])
        return state, state

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        state = jnp.stack([state[0] + 0.5 * action[0] + 0.1 * jr.normal(key), state[1] + 1.0])
        return state, Step(state, state[0], state[0] < -0.3, jnp.asarray(False), {})


class Counter(gymnasium.Env):
    """Counts from its seed upwards. `ends` and `limit` say after how many steps it terminates and is truncated."""

    def __init__(self, ends: int | None = None, limit: int | None = None, low: float = -2.0, high: float = 6.0) -> None:
        self.observation_space = spaces.Dict(
            {"count": spaces.Box(-np.inf, np.inf, (1,)), "wide": spaces.Box(-1.0, 1.0, (2, 2))}
        )
        self.action_space = spaces.Box(np.float32(low), np.float32(high), (2,))
        self.ends, self.limit = ends, limit
        self.episodes, self.age, self.actions = 0, 0, []

    def _obs(self) -> dict[str, np.ndarray]:
        wide = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
        return {"wide": wide, "count": np.array([100.0 * self.episodes + self.age], np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episodes, self.age = self.episodes + 1, 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.age += 1
        terminated, truncated = self.age == self.ends, self.age == self.limit
        info = {"is_success": self.episodes % 2 == 0} if terminated or truncated else {}
        return self._obs(), float(self.age), terminated, truncated, info


class Menu(gymnasium.Env):
    """Five dishes and three drinks, of which a mask allows some; whoever orders another is thrown out.

    Reward 1 for the last dish allowed, and 1 for the last drink; four steps. With `closes`, nothing is left to drink
    after that many steps.
    """

    def __init__(self, closes: int | None = None) -> None:
        self.observation_space = spaces.Dict(
            {"action_mask": spaces.MultiBinary(8), "hunger": spaces.Box(-1.0, 1.0, (1,))}
        )
        self.action_space = spaces.MultiDiscrete([5, 3])
        self.closes, self.age, self.steps = closes, 0, 0

    def _obs(self) -> dict[str, np.ndarray]:
        self.mask = self.np_random.integers(0, 2, 8).astype(np.int8)
        self.mask[[self.np_random.integers(5), 5 + self.np_random.integers(3)]] = 1
        if self.closes is not None and self.steps >= self.closes:
            self.mask[5:] = 0
        return {"action_mask": self.mask, "hunger": np.zeros(1, np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        dish, drink = action
        assert self.mask[dish] and self.mask[5 + drink], "this is not on the menu"
        best = np.flatnonzero(self.mask[:5])[-1], np.flatnonzero(self.mask[5:])[-1]
        self.age, self.steps = self.age + 1, self.steps + 1
        return self._obs(), float(dish == best[0]) + float(drink == best[1]), self.age == 4, False, {}


class Doors(AbstractEnv):
    """Three doors, of which a mask allows those up to the second; after `shuts` steps none. Reward: the door."""

    spec: ClassVar[Spec] = Spec(
        {"action_mask": jax.ShapeDtypeStruct((3,), jnp.float32), "age": jax.ShapeDtypeStruct((1,), jnp.float32)},
        3,
        True,
    )
    max_steps: ClassVar[int] = 8
    shuts: Array

    def _obs(self, age: Array) -> dict[str, Array]:
        mask = jnp.where(age >= self.shuts, 0.0, jnp.array([1.0, 1.0, 0.0]))
        return {"action_mask": mask, "age": age[None]}

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Any]:
        return jnp.zeros(()), self._obs(jnp.zeros(()))

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        out = Step(self._obs(state + 1.0), action.astype(jnp.float32), jnp.asarray(False), jnp.asarray(False), {})
        return state + 1.0, out
