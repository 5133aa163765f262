"""What agents learn from: final structs of arrays with one leading batch axis `b`."""

from typing import TYPE_CHECKING

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, PyTree

if TYPE_CHECKING:  # type checkers see a JAX array, which is what agents get
    AnyArray = Array
else:
    AnyArray = Array | np.ndarray
"""Rows come from the host as NumPy arrays and live on the device as JAX arrays."""


class Transition(eqx.Module):
    """One step of experience. `discount` is 0 where the episode terminated and 1 otherwise (gamma^(n-1) for n steps).

    A time limit leaves `discount` at 1: `next_obs` is then the true final observation and is bootstrapped from.
    """

    obs: PyTree[Float[AnyArray, "b ..."]]
    action: AnyArray
    """(b, action_size) in [-1, 1], or (b,) int32 indices."""
    reward: Float[AnyArray, " b"]
    discount: Float[AnyArray, " b"]
    next_obs: PyTree[Float[AnyArray, "b ..."]]
