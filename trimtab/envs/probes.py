"""Seven tiny worlds whose values are known in closed form: each breaks one part of a learner (after Andy Jones).

With discount gamma, for the best policy:

| world | episode | V |
|---|---|---|
| Constant | one step, reward 1 | 1 |
| ObsDependent | one step, obs x in {-1, 1}, reward x | V(x) = x |
| Delayed | two steps, obs 0 then 1, reward 1 at the end | V(0) = gamma, V(1) = 1 |
| ActionDependent | one step, reward 1 - (a - 1/2)^2 | 1, at a = 1/2 |
| Both | one step, obs x in {-1, 1}, reward 1 - (a - x/2)^2 | 1, at a = x/2 |
| Cut | one step, reward 1; obs 1: terminates; obs 0: cut by the time limit | V(1) = 1, V(0) = 1 / (1 - gamma) |
| Endless | reward 1 a step, obs 0; never terminates, cut after ten steps | 1 / (1 - gamma) |

All have one observation and one action dimension.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step

_SPEC = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1, False, (-1.0,), (1.0,))


def _step(obs: Array, reward: Array, terminated: bool | Array) -> Step:
    return Step(obs, reward, jnp.asarray(terminated), jnp.asarray(False), {})


def _sign(key: PRNGKeyArray) -> Float[Array, "1"]:
    return jnp.where(jr.bernoulli(key), 1.0, -1.0)[None]


class Constant(AbstractEnv):
    """Reward 1 and the end, whatever is seen or done."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 1

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return state, _step(state, jnp.float32(1.0), True)


class ObsDependent(AbstractEnv):
    """Obs x is -1 or 1; reward x and the end."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 1

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        x = _sign(key)
        return x, x

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return state, _step(state, state[0], True)


class Delayed(AbstractEnv):
    """Obs 0, no reward; obs 1, reward 1 and the end."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 2

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return jnp.ones(1), _step(jnp.ones(1), state[0], state[0] > 0.5)


class ActionDependent(AbstractEnv):
    """Reward 1 - (a - 1/2)^2 and the end."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 1

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return state, _step(state, 1.0 - jnp.square(action[0] - 0.5), True)


class Both(AbstractEnv):
    """Obs x is -1 or 1; reward 1 - (a - x/2)^2 and the end."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 1

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        x = _sign(key)
        return x, x

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return state, _step(state, 1.0 - jnp.square(action[0] - 0.5 * state[0]), True)


class Cut(AbstractEnv):
    """Reward 1 each step. Obs 1 terminates after one step; obs 0 would go on for ever and is cut by the time limit."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 1

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        x = jr.bernoulli(key).astype(jnp.float32)[None]
        return x, x

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return state, _step(state, jnp.float32(1.0), state[0] > 0.5)


class Endless(AbstractEnv):
    """Reward 1 a step, and nothing to see. It never terminates, but the time limit cuts it after ten steps."""

    spec: ClassVar[Spec] = _SPEC
    max_steps: ClassVar[int] = 10

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        return jnp.zeros(1), jnp.zeros(1)

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        return state, _step(state, jnp.float32(1.0), False)
