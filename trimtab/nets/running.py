"""Running means and standard deviations."""

import equinox as eqx
import jax
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


def scaled_rewards(
    stats: RunningStd | None, reward: Float[Array, "t n"], discounted: Float[Array, "t n"]
) -> tuple[RunningStd | None, Float[Array, "t n"], Float[Array, ""]]:
    """What was seen of discounted returns, with those of a rollout; its rewards divided by their standard deviation and
    cut at +-10; and what they were divided by. Without `stats` rewards are as they are."""
    if stats is None:
        return None, reward, jnp.ones(())
    seen = stats.seen(discounted.reshape(-1, 1))
    scale = jnp.sqrt(seen.squares[0] + 1e-8)
    return seen, jnp.clip(reward / scale, -10.0, 10.0), scale


class Normaliser(eqx.Module):
    """Observations with mean 0 and standard deviation 1 over all that were seen, cut at +-10; as they are before any.

    Never trained. What passes through does not change what was seen: that is `seen`, once a rollout has been learnt
    from.
    """

    stats: RunningStd
    tied: tuple[tuple[int, int], tuple[int, int]] | None = eqx.field(static=True, default=None)
    """columns that are normalised like others (first, and after the last, of both), so that their difference means
    something; None without such."""

    @classmethod
    def create(cls, size: int, tied: tuple[tuple[int, int], tuple[int, int]] | None = None) -> "Normaliser":
        """Nothing seen yet, for `size` numbers."""
        return cls(RunningStd.create(size), tied)

    def seen(self, rows: Float[Array, "b n"]) -> "Normaliser":
        """With `rows`."""
        return Normaliser(self.stats.seen(rows), self.tied)

    def __call__(self, x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        mean, squares, count = jax.lax.stop_gradient((self.stats.mean, self.stats.squares, self.stats.count))
        if self.tied is not None:
            these, those = (slice(*part) for part in self.tied)
            mean, squares = mean.at[these].set(mean[those]), squares.at[these].set(squares[those])
        scale = jax.lax.rsqrt(jnp.where(count > 0.0, squares, 1.0) + 1e-8)
        normal = (x - jnp.broadcast_to(mean, x.shape)) * jnp.broadcast_to(scale, x.shape)
        return jnp.where(count > 0.0, jnp.clip(normal, -10.0, 10.0), x)
