"""Gaussian mixtures by expectation maximisation, and their entropy: how spread out a cloud of actions is.

    r_nj = w_j N(x_n; m_j, S_j) / sum_i w_i N(x_n; m_i, S_i)                                expectation
    w_j = mean_n r_nj,  m_j = sum_n r_nj x_n / sum_n r_nj,  S_j likewise + 1e-6 I           maximisation
    H = -sum_j w_j log w_j + sum_j w_j 1/2 (d (1 + log 2 pi) + log det S_j)                 an upper bound

H is the entropy of (component, point) together: it exceeds that of the point by what the point does not tell about its
component, nothing for components far apart. FINO (arXiv:2602.18117) steers its exploration by it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

FLOOR = 1e-6
"""Added to the diagonal of every covariance: clipped actions may lie in a plane."""


class Mixture(eqx.Module):
    """A Gaussian mixture of k components in d dimensions."""

    weight: Float[Array, " k"]
    mean: Float[Array, "k d"]
    covariance: Float[Array, "k d d"]

    def log_joint(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """log(w_j N(x_n; m_j, S_j))."""
        factor = jnp.linalg.cholesky(self.covariance)
        centred = (x[:, None, :] - self.mean[None]).transpose(1, 2, 0)  # (k, d, n)
        white = jax.lax.linalg.triangular_solve(factor, centred, left_side=True, lower=True)
        square = jnp.square(white).sum(1).T
        constant = 0.5 * x.shape[1] * jnp.log(2.0 * jnp.pi) - jnp.log(self.weight + 1e-8) + 0.5 * self._log_det()
        return -0.5 * square - constant[None, :]

    def entropy(self) -> Float[Array, ""]:
        """H above, in nats."""
        size = self.mean.shape[1]
        parts = 0.5 * (size * (1.0 + jnp.log(2.0 * jnp.pi)) + self._log_det())
        return (self.weight * (parts - jnp.log(self.weight + 1e-8))).sum()

    def _log_det(self) -> Float[Array, " k"]:
        diagonal = jnp.diagonal(jnp.linalg.cholesky(self.covariance), axis1=-2, axis2=-1)
        return 2.0 * jnp.log(diagonal).sum(-1)


def fit_mixture(x: Float[Array, "n d"], key: PRNGKeyArray, *, components: int = 3, iterations: int = 50) -> Mixture:
    """The mixture after that many rounds of expectation maximisation, begun at centres drawn apart from each other
    (k-means++) and ten rounds of k-means."""
    centres = _centres(x, key, components)
    closest = lambda centres: jax.nn.one_hot(_squares(x, centres).argmin(1), components)
    move = lambda _, centres: _maximise(x, closest(centres), centres).mean
    centres = jax.lax.fori_loop(0, 10, move, centres)
    start = _maximise(x, closest(centres), centres)
    step = lambda _, mixture: _maximise(x, jax.nn.softmax(mixture.log_joint(x), axis=1), mixture.mean)
    return jax.lax.fori_loop(0, iterations, step, start)


def mixture_entropy(
    x: Float[Array, "n d"], key: PRNGKeyArray, *, components: int = 3, iterations: int = 50
) -> Float[Array, ""]:
    """`entropy` of `fit_mixture`: about that of the distribution the points come from, in nats."""
    return fit_mixture(x, key, components=components, iterations=iterations).entropy()


def _squares(x: Float[Array, "n d"], centres: Float[Array, "k d"]) -> Float[Array, "n k"]:
    return jnp.square(x[:, None, :] - centres[None]).sum(-1)


def _centres(x: Float[Array, "n d"], key: PRNGKeyArray, components: int) -> Float[Array, "k d"]:
    """Points of x, each drawn with a probability that grows with the square of its distance to those before it."""
    keys = jr.split(key, components)
    centres = jnp.broadcast_to(x[jr.randint(keys[0], (), 0, len(x))], (components, x.shape[1]))
    for j in range(1, components):
        distance = _squares(x, centres[:j]).min(1)
        centres = centres.at[j:].set(x[jr.categorical(keys[j], jnp.log(distance + 1e-12))])
    return centres


def _maximise(x: Float[Array, "n d"], share: Float[Array, "n k"], old: Float[Array, "k d"]) -> Mixture:
    """The mixture of points shared out among components; an empty one keeps its mean, with almost no weight."""
    total = share.sum(0)
    mean = jnp.where(total[:, None] > 1e-3, (share.T @ x) / (total[:, None] + 1e-8), old)
    centred = x[:, None, :] - mean[None]
    covariance = jnp.einsum("nk,nkd,nke->kde", share, centred, centred) / (total[:, None, None] + 1e-8)
    return Mixture(total / total.sum(), mean, covariance + FLOOR * jnp.eye(x.shape[1])[None])
