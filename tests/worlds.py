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
