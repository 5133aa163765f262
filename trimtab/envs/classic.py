"""CartPole and Pendulum in JAX: Gymnasium's CartPole-v1 and Pendulum-v1 step for step, in the compiled loop.

The equations and constants are Gymnasium's (Barto, Sutton and Anderson 1983 for the cart); only the initial states come
from another generator.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02


class CartPole(AbstractEnv):
    """Two actions push the cart left or right; reward 1 a step while the pole is up and the cart near the middle.

    Ends beyond 2.4 or 12 degrees, and is cut after 500 steps.
    """

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((4,), jnp.float32), 2, True)
    max_steps: ClassVar[int] = 500

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        state = jr.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return state, state

    def step(self, state: Float[Array, "4"], action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        _, v, angle, spin = state
        force = jnp.where(action == 1, FORCE, -FORCE)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = (force + POLE * HALF_LENGTH * jnp.square(spin) * sin) / (CART + POLE)
        inertia = HALF_LENGTH * (4.0 / 3.0 - POLE * jnp.square(cos) / (CART + POLE))
        spin_rate = (GRAVITY * sin - cos * push) / inertia
        rate = push - POLE * HALF_LENGTH * spin_rate * cos / (CART + POLE)
        new = state + SECONDS * jnp.stack([v, rate, spin, spin_rate])
        over = (jnp.abs(new[0]) > 2.4) | (jnp.abs(new[2]) > 12.0 * 2.0 * jnp.pi / 360.0)
        return new, Step(new, jnp.float32(1.0), over, jnp.asarray(False), {})


class Pendulum(AbstractEnv):
    """A torque swings the pendulum up; reward -(angle^2 + 0.1 spin^2 + 0.001 torque^2). Cut after 200 steps."""

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 1, False, (-2.0,), (2.0,))
    max_steps: ClassVar[int] = 200

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        high = jnp.array([jnp.pi, 1.0])
        state = high * jr.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return state, self._obs(state)

    def step(self, state: Float[Array, "2"], action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        angle, spin = state
        torque = 2.0 * jnp.clip(action[0], -1.0, 1.0)
        wrapped = (angle + jnp.pi) % (2.0 * jnp.pi) - jnp.pi
        cost = jnp.square(wrapped) + 0.1 * jnp.square(spin) + 0.001 * jnp.square(torque)
        spin = jnp.clip(spin + (15.0 * jnp.sin(angle) + 3.0 * torque) * 0.05, -8.0, 8.0)
        new = jnp.stack([angle + 0.05 * spin, spin])
        return new, Step(self._obs(new), -cost, jnp.asarray(False), jnp.asarray(False), {})

    def _obs(self, state: Float[Array, "2"]) -> Float[Array, "3"]:
        return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])
