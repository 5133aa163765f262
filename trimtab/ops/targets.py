"""Bootstrap targets and target networks."""

from typing import Any

import jax
from jaxtyping import Array, Float


def polyak(online: Any, target: Any, rate: float | Float[Array, ""]) -> Any:
    """The new target: `(1 - rate) target + rate online`, leaf by leaf. `rate` in [0, 1]."""
    return jax.tree.map(lambda o, t: t + rate * (o - t), online, target)


AGGREGATES = ("mean", "min")
"""How the values of several critics become one."""


def aggregate(q: Float[Array, "e b"], how: str) -> Float[Array, " b"]:
    """The mean over the members of an ensemble, or the least of them: one of `AGGREGATES`."""
    return q.min(0) if how == "min" else q.mean(0)


def td_target(
    reward: Float[Array, " b"], discount: Float[Array, " b"], value: Float[Array, " b"], gamma: float
) -> Float[Array, " b"]:
    """`r + gamma d V(s')`; `discount` d is 0 where the episode terminated, 1 where it was only cut."""
    return reward + gamma * discount * value
