"""Exponential families whose statistics are polynomials of the action: densities on the box by exact quadrature.

    pi(a) = exp(lambda T(a)) / Z,  T_e(a) = prod_d P_(e_d)(a_d) for all e with e_1 + ... + e_D <= n,  a in [-1, 1]^D

P_k is the k-th Legendre polynomial. Z, the entropy, moments and the divergence between two members are sums over a grid
(MePoly, Liu, Teng and Ghaffari 2026, arXiv:2602.17832). A Gauss-Legendre rule with G points a dimension is exact for
polynomials of degree 2G - 1; the trapezoid is the paper's code's. Beyond three dimensions or so the grid is out of
reach: then the action is cut into blocks that are independent given the state.
"""

import math
from functools import cache, reduce
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Metrics, Spec, UsageError
from trimtab.nets.mlp import MLP, concat
from trimtab.policies.distributions import AbstractDistribution

LARGEST_GRID = 2_000_000
"""Points of a grid; more are refused."""

PLACES = 16
"""Places in a cell among which a draw is chosen by their density."""

EDGE = 1e-4
"""Actions are moved inside the box by this much before their density is asked for, whoever asks."""


@cache
def exponents(order: int, dims: int) -> tuple[tuple[int, ...], ...]:
    """All e with e_1 + ... + e_D <= order, the constant first."""
    found = (e for e in product(range(order + 1), repeat=dims) if sum(e) <= order)
    return tuple(sorted(found, key=lambda e: (sum(e), e)))


@cache
def rule(points: int, quadrature: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights, and edges of the nodes' cells (one more) of a rule on [-1, 1], in float64."""
    if quadrature == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(points)
    else:
        nodes = np.linspace(-1.0, 1.0, points)
        weights = np.full(points, 2.0 / (points - 1))
        weights[[0, -1]] /= 2.0
    # The sums of the weights interlace the nodes.
    return nodes, weights, np.concatenate([[-1.0], -1.0 + np.cumsum(weights)])


def legendre(x: Array, order: int) -> Array:
    """P_0(x) ... P_n(x) along a new last axis: k P_k = (2k - 1) x P_(k-1) - (k - 1) P_(k-2)."""
    found = [jnp.ones_like(x), x]
    for k in range(2, order + 1):
        found.append(((2 * k - 1) * x * found[-1] - (k - 1) * found[-2]) / k)
    return jnp.stack(found[: order + 1], axis=-1)


def enough_points(order: int) -> int:
    """Gauss-Legendre nodes a dimension that are enough for densities of that degree which are not extreme."""
    return 3 * order + 6


def monomials(x: Array, order: int) -> Array:
    """1, x, ... x^n along a new last axis."""
    return jnp.stack([x**k for k in range(order + 1)], axis=-1)


class Family(eqx.Module):
    """Which polynomials, and the grid they are summed on. All static: two families of the same numbers are one."""

    order: int = eqx.field(static=True)
    dims: int = eqx.field(static=True)
    points: int = eqx.field(static=True)
    quadrature: str = eqx.field(static=True, default="gauss")
    basis: str = eqx.field(static=True, default="legendre")

    @classmethod
    def create(
        cls, order: int, dims: int, points: int = 0, *, quadrature: str = "gauss", basis: str = "legendre"
    ) -> "Family":
        """`points` a dimension, 0: `enough_points(order)`.

        Raises `UsageError` for an unknown rule or basis, or a grid beyond reach.
        """
        if quadrature not in ("gauss", "trapezoid") or basis not in ("legendre", "standard"):
            raise UsageError(f"choose quadrature gauss or trapezoid, basis legendre or standard: {quadrature}, {basis}")
        points = points or enough_points(order)
        if order < 1 or points < 2:
            raise UsageError(f"a polynomial needs order at least 1 and 2 points, got {order} and {points}")
        if points**dims > LARGEST_GRID:
            raise UsageError(
                f"a grid of {points}^{dims} points is beyond reach: use fewer points, or blocks of fewer dimensions"
            )
        return cls(order, dims, points, quadrature, basis)

    @property
    def size(self) -> int:
        """Numbers of lambda."""
        return math.comb(self.order + self.dims, self.dims)

    def statistics(self, action: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """T(a)."""
        powers = (legendre if self.basis == "legendre" else monomials)(action, self.order)
        index = np.array(exponents(self.order, self.dims))
        each = (powers[..., d, :][..., index[:, d]] for d in range(self.dims))
        return reduce(jnp.multiply, each)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Points (m, d) and the logarithms of their weights (m,)."""
        nodes, weights, _ = rule(self.points, self.quadrature)
        places = self._places()
        return nodes[places], np.log(weights)[places].sum(1)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corners (m, d) of the cells around the points."""
        edges, places = rule(self.points, self.quadrature)[2], self._places()
        return edges[places], edges[places + 1]

    def _places(self) -> np.ndarray:
        return np.array(list(np.ndindex(*(self.points,) * self.dims)))


class Polynomial(AbstractDistribution):
    """A member of a `Family` for each state."""

    natural: Float[Array, "*b k"]
    """lambda."""
    log_density: Float[Array, "*b m"]
    """at the points of the grid."""
    log_partition: Float[Array, "*b"]
    """log Z."""
    family: Family
    jitter: bool = eqx.field(static=True, default=True)
    """whether samples are spread over the cells of the grid's points; else they are these points."""
    best: str = eqx.field(static=True, default="argmax")
    """what `mode` is: "argmax" over the grid, or the "mean", which may lie between two modes."""

    @classmethod
    def create(
        cls, family: Family, natural: Float[Array, "*b k"], *, jitter: bool = True, best: str = "argmax"
    ) -> "Polynomial":
        """The members with parameters `natural`."""
        points, log_weights = family.grid()
        logits = natural @ family.statistics(jnp.asarray(points, natural.dtype)).T
        log_z = jax.nn.logsumexp(logits + _along(log_weights, logits), axis=-1)
        return cls(natural, logits - log_z[..., None], log_z, family, jitter, best)

    @property
    def log_mass(self) -> Float[Array, "*b m"]:
        """Log probability of each point's cell."""
        return self.log_density + _along(self.family.grid()[1], self.log_density)

    def log_prob(self, action: Float[Array, "*b d"]) -> Float[Array, "*b"]:
        """lambda T(a) - log Z. Actions on the edge of the box are moved inside a little."""
        inside = jnp.clip(action, -1.0 + EDGE, 1.0 - EDGE)
        return (self.natural * self.family.statistics(inside)).sum(-1) - self.log_partition

    def entropy(self) -> Float[Array, "*b"]:
        """-sum w p log p: exact up to the quadrature, and so is its gradient."""
        return -(jnp.exp(self.log_mass) * self.log_density).sum(-1)

    def moments(self) -> Float[Array, "*b k"]:
        """E[T(a)], the gradient of log Z."""
        points = jnp.asarray(self.family.grid()[0], self.natural.dtype)
        return jnp.exp(self.log_mass) @ self.family.statistics(points)

    def mean(self) -> Float[Array, "*b d"]:
        """E[a]."""
        return jnp.exp(self.log_mass) @ jnp.asarray(self.family.grid()[0], self.natural.dtype)

    def kl(self, other: "Polynomial") -> Float[Array, "*b"]:
        """KL(self | other) = (lambda - lambda') E[T] - log Z + log Z', within one family."""
        apart = ((self.natural - other.natural) * self.moments()).sum(-1)
        return apart - self.log_partition + other.log_partition

    def expected(self, values: Float[Array, "*b m"]) -> Float[Array, "*b"]:
        """The mean of a function that is given at the points of the grid."""
        return (jnp.exp(self.log_mass) * values).sum(-1)

    def edge_mass(self) -> Float[Array, "*b"]:
        """Probability of the outermost cells, beyond what they have when all actions are as likely: where it is large,
        the quadrature is not to be trusted."""
        places, (_, log_weights) = self.family._places(), self.family.grid()
        outer = ((places == 0) | (places == self.family.points - 1)).any(1)
        even = np.exp(log_weights)[outer].sum() / 2.0**self.family.dims
        return jnp.exp(self.log_mass) @ jnp.asarray(outer, self.natural.dtype) - even

    def health(self) -> Metrics:
        """edge: mean `edge_mass`."""
        return {"edge": self.edge_mass().mean()}

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*b d"]:
        """A cell by its probability, and with `jitter` a place in it by the density there: one of `PLACES` places that
        are drawn evenly. A density may be narrower than a cell."""
        k_cell, k_places, k_which = jr.split(key, 3)
        cell = jr.categorical(k_cell, self.log_mass)
        if not self.jitter:
            return jnp.asarray(self.family.grid()[0], jnp.float32)[cell]
        low, high = (jnp.asarray(corner, jnp.float32)[cell][..., None, :] for corner in self.family.cells())
        share = jr.uniform(k_places, (*cell.shape, PLACES, self.family.dims))
        places = jnp.clip(low + (high - low) * share, -1.0 + EDGE, 1.0 - EDGE)
        log_density = (self.family.statistics(places) * self.natural[..., None, :]).sum(-1)
        which = jr.categorical(k_which, log_density)[..., None, None]
        return jnp.take_along_axis(places, which, axis=-2)[..., 0, :]

    def mode(self) -> Float[Array, "*b d"]:
        """The densest point of the grid, or the mean."""
        if self.best == "mean":
            return self.mean()
        return jnp.asarray(self.family.grid()[0], jnp.float32)[self.log_density.argmax(-1)]


class Blocks(AbstractDistribution):
    """Members of several families side by side, one a block of action dimensions, independent of each other."""

    parts: tuple[Polynomial, ...]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*b d"]:
        """One block after the other."""
        keys = jr.split(key, len(self.parts))
        return jnp.concatenate([part.sample(k) for part, k in zip(self.parts, keys, strict=True)], axis=-1)

    def log_prob(self, action: Float[Array, "*b d"]) -> Float[Array, "*b"]:
        """The sum of the blocks'."""
        ends = np.cumsum([part.family.dims for part in self.parts])[:-1]
        each = zip(self.parts, jnp.split(action, ends, axis=-1), strict=True)
        return sum((part.log_prob(a) for part, a in each), jnp.zeros(()))

    def entropy(self) -> Float[Array, "*b"]:
        """The sum of the blocks'."""
        return sum((part.entropy() for part in self.parts), jnp.zeros(()))

    def mode(self) -> Float[Array, "*b d"]:
        """Each block's."""
        return jnp.concatenate([part.mode() for part in self.parts], axis=-1)

    def kl(self, other: "Blocks") -> Float[Array, "*b"]:
        """KL(self | other), the sum of the blocks', within the same families."""
        return sum((mine.kl(its) for mine, its in zip(self.parts, other.parts, strict=True)), jnp.zeros(()))

    def health(self) -> Metrics:
        """edge: the largest of the blocks' means of `edge_mass`."""
        return {"edge": jnp.stack([part.edge_mass().mean() for part in self.parts]).max()}


def _along(x: np.ndarray, like: Array) -> Array:
    """A vector of constants along the last axis of `like`."""
    return jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape)


def most_likely(
    family: Family, actions: Float[Array, "n d"], *, ridge: float = 1e-5, steps: int = 40
) -> Float[Array, " k"]:
    """The lambda that makes `actions` most likely: the least of log Z - lambda mean T(a) + ridge |lambda|^2 / 2.

    The problem is convex. Newton's steps, whose Hessian is the covariance of T; of the step, its half, its quarter and
    so on the best is taken. At the minimum E[T] is the mean of T(a), but for ridge lambda.
    """
    points, log_weights = family.grid()
    at_points, wanted = family.statistics(jnp.asarray(points, actions.dtype)), family.statistics(actions).mean(0)
    log_weights = jnp.asarray(log_weights, actions.dtype)
    sizes = 0.5 ** jnp.arange(10, dtype=actions.dtype)

    def step(natural: Array, _: None) -> tuple[Array, None]:
        mass = jax.nn.softmax(at_points @ natural + log_weights)
        mean = mass @ at_points
        covariance = (at_points * mass[:, None]).T @ at_points - jnp.outer(mean, mean)
        slope = mean - wanted + ridge * natural
        way = jnp.linalg.solve(covariance + ridge * jnp.eye(family.size, dtype=actions.dtype), slope)
        found = natural[None] - sizes[:, None] * way[None]
        log_z = jax.nn.logsumexp(found @ at_points.T + log_weights[None], axis=-1)
        loss = log_z - found @ wanted + 0.5 * ridge * jnp.square(found).sum(-1)
        return found[jnp.argmin(loss)], None

    return jax.lax.scan(step, jnp.zeros(family.size, actions.dtype), length=steps)[0]


class PolynomialPolicy(AbstractPolicy):
    """A network from observations to a member of a family; acts with a draw from it."""

    net: MLP
    family: Family
    bound: float = eqx.field(static=True)

    @classmethod
    def create(
        cls, spec: Spec, family: Family, hidden: tuple[int, ...], key: PRNGKeyArray, *, bound: float = 100.0
    ) -> "PolynomialPolicy":
        """Parameters are bound tanh(output / bound); the first densities are nearly uniform. The constant's is 0: it
        does not change a density, and Adam would chase the rounding of its gradient."""
        return cls(MLP.create(spec.obs_size, hidden, family.size - 1, key, out_scale=0.1), family, bound)

    def distribution(self, obs: PyTree[Float[Array, "..."]]) -> Polynomial:
        """The density in each state."""
        natural = self.bound * jnp.tanh(self.net(concat(obs)) / self.bound)
        constant = jnp.zeros_like(natural[..., :1])
        return Polynomial.create(self.family, jnp.concatenate([constant, natural], axis=-1))

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.distribution(obs).sample(key)


class PolynomialMode(AbstractPolicy):
    """The densest node of a polynomial policy: what is evaluated."""

    inner: PolynomialPolicy

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.inner.distribution(obs).mode()
