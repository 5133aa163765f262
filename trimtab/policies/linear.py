"""Time-varying linear policies: feedback gains and a feed-forward term that depend on the phase of a motion alone.

    mu(s, phase) = K(phase) s + k(phase)                                     (LPN, Xie et al. 2026, arXiv:2602.18312)

K and k are what a small network puts out for features of the phase, so the Jacobian of the mean by the state is K, at
no cost. Observations are dicts with the parts `phase` (the time features) and `state`; with `reference` (the state of
the motion that is followed), K multiplies s - reference. What the reference action adds is the world's business.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import Spec, UsageError
from trimtab.nets.mlp import MLP

PHASE, REFERENCE, STATE = "phase", "reference", "state"


def columns(spec: Spec, part: str) -> tuple[int, int]:
    """Where a part of a dict observation lies among the features: first column, and the one after the last."""
    first = 0
    for name in sorted(spec.obs):
        if name == part:
            return first, first + spec.obs[name].size
        first += spec.obs[name].size
    raise KeyError(part)


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
        (first, end), n, m = columns(spec, PHASE), spec.obs[STATE].size, spec.action_size
        gains = m * n if rank is None else (m + n) * rank
        net = MLP.create(end - first, hidden, gains + m, key, activation=activation, out_scale=0.1)
        reference = columns(spec, REFERENCE) if REFERENCE in spec.obs else None
        return cls(net, (first, end), columns(spec, STATE), reference, m, rank)

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
        state = x[..., slice(*self.state)]
        if self.reference is not None:
            state = state - x[..., slice(*self.reference)]
        left, right, k = self._factors(x[..., slice(*self.phase)])
        if right is not None:
            state = jnp.einsum("...nr,...n->...r", right, state)
        return jnp.einsum("...mn,...n->...m", left, state) + k

    def squared_gains(self, x: Float[Array, "*b i"]) -> Float[Array, "*b"]:
        """|K|^2: the squared Frobenius norm of the Jacobian of the mean by the state. Of factors it is
        tr(U'U V'V), without their product."""
        left, right, _ = self._factors(x[..., slice(*self.phase)])
        if right is None:
            return jnp.square(left).sum((-1, -2))
        inner = lambda f: jnp.einsum("...ar,...as->...rs", f, f)
        return (inner(left) * inner(right)).sum((-1, -2))

    def export_table(self, phase: Float[Array, "t f"]) -> tuple[Float[Array, "t m n"], Float[Array, "t m"]]:
        """K and k on a grid of time features: all that is needed to deploy it, one product of a matrix a tick."""
        return self.gains(phase)
