"""What agents learn from: final structs of arrays with one leading batch axis `b`."""

import equinox as eqx
from jaxtyping import Array, Float, PyTree


class Transition(eqx.Module):
    """One step of experience. `discount` is 0 where the episode terminated and 1 otherwise (gamma^(n-1) for n steps).

    A time limit leaves `discount` at 1: `next_obs` is then the true final observation and is bootstrapped from.
    """

    obs: PyTree[Float[Array, "b ..."]]
    action: Array
    """(b, action_size) in [-1, 1], or (b,) int32 indices."""
    reward: Float[Array, " b"]
    discount: Float[Array, " b"]
    next_obs: PyTree[Float[Array, "b ..."]]
