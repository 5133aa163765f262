"""The squared norm of a policy's Jacobian by its observation: how sharply actions answer to what is seen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

Mean = Callable[[Float[Array, " i"]], Float[Array, " m"]]


def squared_jacobian(mean: Mean, x: Float[Array, "b i"], first: int, end: int) -> Float[Array, " b"]:
    """|d mean / d x|^2 (Frobenius) of each row, by the columns `first` to `end`: exact, one pass a dimension of the
    mean or of x, whichever are fewer."""

    def one(row: Float[Array, " i"]) -> Float[Array, ""]:
        part = lambda some: mean(row.at[first:end].set(some))
        sides = jax.eval_shape(mean, row).shape[0], end - first
        differentiate = jax.jacrev if sides[0] <= sides[1] else jax.jacfwd
        return jnp.square(differentiate(part)(row[first:end])).sum()

    return jax.vmap(one)(x)


def squared_jacobian_estimate(
    mean: Mean, x: Float[Array, "b i"], first: int, end: int, key: PRNGKeyArray
) -> Float[Array, " b"]:
    """The same in expectation from one pass a row (Hutchinson): |J' v|^2, v of random signs."""

    def one(row: Float[Array, " i"], key: PRNGKeyArray) -> Float[Array, ""]:
        out, pull = jax.vjp(lambda some: mean(row.at[first:end].set(some)), row[first:end])
        return jnp.square(pull(jr.rademacher(key, out.shape, out.dtype))[0]).sum()

    return jax.vmap(one)(x, jr.split(key, x.shape[0]))
