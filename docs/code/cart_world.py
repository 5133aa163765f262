"""The cart as a world in JAX."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

import trimtab
from trimtab.core import AbstractEnv, Spec, Step


class CartWorld(AbstractEnv):
    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1, action_low=(-1.0,), action_high=(1.0,))
    max_steps: ClassVar[int] = 100  # the time limit

    mass: Float[Array, ""]  # physical parameters are array fields

    def reset(self, key):
        state = jnp.array([jr.uniform(key, minval=-1.0, maxval=1.0), 0.0])
        return state, state  # the state and what the agent sees of it

    def step(self, state, action, key):
        velocity = state[1] + 0.2 * action[0] / self.mass
        position = state[0] + 0.1 * velocity
        state = jnp.stack([position, velocity])
        reward = 1.0 - position**2 - 0.1 * velocity**2
        terminated, truncated = jnp.abs(position) > 3.0, jnp.asarray(False)  # truncation is the time limit's
        return state, Step(state, reward, terminated, truncated, {})


trimtab.register("my/CartWorld", lambda: CartWorld(mass=jnp.float32(1.0)))
