"""Write a world in JAX: it is stepped inside the compiled loop, and seeds train together by vmap.

    python examples/own_world.py
    PYTHONPATH=examples trimtab train sac --import own_world --env my/Cart --steps 1500 --seeds 0 1

Some 20 seconds on two cores.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

import trimtab
from trimtab.agents.sac import Config
from trimtab.core import AbstractEnv, Spec, Step


class Cart(AbstractEnv):
    """Push a cart to the origin of its rail and hold it there. Observation: position, velocity. Action: force."""

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1, action_low=(-1.0,), action_high=(1.0,))
    max_steps: ClassVar[int] = 100  # the time limit: it truncates, it does not terminate

    mass: Float[Array, ""]  # physical parameters are array fields, so that vmap over the world varies them

    def reset(self, key):
        state = jnp.array([jr.uniform(key, minval=-1.0, maxval=1.0), 0.0])
        return state, state

    def step(self, state, action, key):
        velocity = state[1] + 0.2 * action[0] / self.mass
        position = state[0] + 0.1 * velocity
        state = jnp.stack([position, velocity])
        reward = 1.0 - position**2 - 0.1 * velocity**2
        return state, Step(state, reward, jnp.abs(position) > 3.0, jnp.asarray(False), {})


trimtab.register("my/Cart", lambda: Cart(mass=jnp.float32(1.0)))


if __name__ == "__main__":
    small = Config(hidden=(64, 64), batch_size=64, buffer_size=10_000)
    runs = trimtab.train("sac", "my/Cart", steps=2_000, seeds=(0, 1, 2, 3), eval_freq=1_000, config=small)
    returns = [trimtab.evaluate(run.policy, "my/Cart", episodes=20)[0] for run in runs]
    print(f"returns of four seeds: {np.round(returns, 1)} of at most 100")
    print(f"compare them: trimtab report {' '.join(str(run.path) for run in runs)}")
