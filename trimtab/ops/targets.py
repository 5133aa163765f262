"""Bootstrap targets and target networks."""

from typing import Any

import jax
from jaxtyping import Array, Float


def polyak(online: Any, target: Any, rate: float | Float[Array, ""]) -> Any:
    """The new target: `(1 - rate) target + rate online`, leaf by leaf. `rate` in [0, 1]."""
    return jax.tree.map(lambda o, t: t + rate * (o - t), online, target)


def td_target(
    reward: Float[Array, " b"], discount: Float[Array, " b"], value: Float[Array, " b"], gamma: float
) -> Float[Array, " b"]:
    """`r + gamma d V(s')`; `discount` d is 0 where the episode terminated, 1 where it was only cut."""
    return reward + gamma * discount * value
