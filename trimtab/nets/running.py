"""Running standard deviations."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class RunningStd(eqx.Module):
    """Mean and standard deviation of all rows seen so far; they are never trained."""

    count: Float[Array, ""]
    mean: Float[Array, " n"]
    squares: Float[Array, " n"]
    """mean squared distance from the mean."""

    @classmethod
    def create(cls, size: int) -> "RunningStd":
        """Nothing seen yet."""
        return cls(jnp.zeros(()), jnp.zeros((size,)), jnp.zeros((size,)))

    def seen(self, rows: Float[Array, "b n"]) -> "RunningStd":
        """With `rows`, exactly as if all had been there at once (Chan et al. 1983)."""
        new = float(rows.shape[0])
        count = self.count + new
        share, mean = new / count, rows.mean(0)
        apart = mean - self.mean
        squares = self.squares + share * (rows.var(0) - self.squares + (1.0 - share) * jnp.square(apart))
        return RunningStd(count, self.mean + share * apart, squares)

    @property
    def std(self) -> Float[Array, " n"]:
        """The standard deviation of each number; 0 before anything was seen."""
        return jnp.sqrt(self.squares)
