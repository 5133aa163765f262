"""Time-varying linear policies: feedback gains and a feed-forward term that depend on the phase of a motion alone.

    mu(s, phase) = K(phase) s + k(phase)                                     (LPN, Xie et al. 2026, arXiv:2602.18312)

K and k are what a small network puts out for features of the phase, so the Jacobian of the mean by the state is K, at
no cost. Observations are dicts with the parts `phase` (the time features) and `state`; with `reference` (the state of
the motion that is followed), K multiplies s - reference. What the reference action adds is the world's business.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import Spec, UsageError
from trimtab.nets.mlp import MLP

PHASE, REFERENCE, STATE = "phase", "reference", "state"


def columns(obs: dict[str, Any], part: str) -> tuple[int, int]:
    """Where a part of a dict observation, or of its spec, lies among the features: first column, and the one after the
    last."""
    first = 0
    for name in sorted(obs):
        size = _width(obs[name])
        if name == part:
            return first, first + size
        first += size
    raise KeyError(part)


def state_columns(obs: Any) -> tuple[int, int]:
    """The columns by which a policy's Jacobian is taken: those of the part `state`, or all where there is no such."""
    return columns(obs, STATE) if isinstance(obs, dict) and STATE in obs else (0, _width(obs))


def tied_columns(obs: Any) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The columns of the part `reference`, and those of `state`, whose units it must have; None without these parts."""
    if not isinstance(obs, dict) or not {REFERENCE, STATE} <= set(obs):
        return None
    return columns(obs, REFERENCE), columns(obs, STATE)


def _width(part: Any) -> int:
    """Numbers along the last axis of all leaves."""
    return sum(leaf.shape[-1] for leaf in jax.tree.leaves(part))


class LinearPolicyNet(eqx.Module):
    """Features (..., i) -> mean actions (..., m)."""

    net: MLP
    phase: tuple[int, int] = eqx.field(static=True)
    state: tuple[int, int] = eqx.field(static=True)
    reference: tuple[int, int] | None = eqx.field(static=True)
    """columns of the parts among the features."""
    actions: int = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    """K = U V', U (m, rank) and V (n, rank); None: K is any matrix."""

    @classmethod
    def create(
        cls, spec: Spec, hidden: tuple[int, ...], key: PRNGKeyArray, *, rank: int | None = None, activation: str = "elu"
    ) -> "LinearPolicyNet":
        """Raises `UsageError` for observations without the parts it needs, or a rank below 1."""
        if not isinstance(spec.obs, dict) or not {PHASE, STATE} <= set(spec.obs) or spec.discrete:
            raise UsageError("a linear policy needs continuous actions and observations with the parts phase and state")
        if rank is not None and rank < 1:
            raise UsageError(f"rank must be at least 1, got {rank}")
        (first, end), n, m = columns(spec.obs, PHASE), _width(spec.obs[STATE]), spec.action_size
        gains = m * n if rank is None else (m + n) * rank
        net = MLP.create(end - first, hidden, gains + m, key, activation=activation, out_scale=0.1)
        reference = columns(spec.obs, REFERENCE) if REFERENCE in spec.obs else None
        if reference is not None and _width(spec.obs[REFERENCE]) != n:
            raise UsageError(f"the part reference has {_width(spec.obs[REFERENCE])} numbers, but the part state {n}")
        return cls(net, (first, end), columns(spec.obs, STATE), reference, m, rank)

    def gains(self, phase: Float[Array, "*b t"]) -> tuple[Float[Array, "*b m n"], Float[Array, "*b m"]]:
        """K and k for time features."""
        left, right, k = self._factors(phase)
        return (left if right is None else left @ jnp.swapaxes(right, -1, -2)), k

    def _factors(self, phase: Array) -> tuple[Array, Array | None, Array]:
        """K or its factors U and V, and k."""
        out, m, n = self.net(phase), self.actions, self.state[1] - self.state[0]
        k, rest = out[..., :m], out[..., m:]
        if self.rank is None:
            return rest.reshape(*rest.shape[:-1], m, n), None, k
        left = rest[..., : m * self.rank].reshape(*rest.shape[:-1], m, self.rank)
        return left, rest[..., m * self.rank :].reshape(*rest.shape[:-1], n, self.rank), k

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b m"]:
        return self._mean(x, *self._factors(x[..., slice(*self.phase)]))

    def with_squared_gains(self, x: Float[Array, "*b i"]) -> tuple[Float[Array, "*b m"], Float[Array, "*b"]]:
        """The mean actions, and |K|^2 from the same pass: the squared Frobenius norm of the Jacobian of the mean by the
        state. Of factors it is tr(U'U V'V), without their product."""
        left, right, k = self._factors(x[..., slice(*self.phase)])
        mean = self._mean(x, left, right, k)
        if right is None:
            return mean, jnp.square(left).sum((-1, -2))
        inner = lambda f: jnp.einsum("...ar,...as->...rs", f, f)
        return mean, (inner(left) * inner(right)).sum((-1, -2))

    def _mean(self, x: Array, left: Array, right: Array | None, k: Array) -> Array:
        """K (s - reference) + k."""
        state = x[..., slice(*self.state)]
        if self.reference is not None:
            state = state - x[..., slice(*self.reference)]
        if right is not None:
            state = jnp.einsum("...nr,...n->...r", right, state)
        return jnp.einsum("...mn,...n->...m", left, state) + k

    def export_table(self, phase: Float[Array, "t f"]) -> tuple[Float[Array, "t m n"], Float[Array, "t m"]]:
        """K and k on a grid of time features: all that is needed to deploy it, one product of a matrix a tick."""
        return self.gains(phase)
