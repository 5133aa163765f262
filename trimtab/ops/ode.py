"""Flows as ordinary differential equations: integration, divergence, and the density at a flow's end.

    dx/dt = v(x, t),  x(0) ~ N(0, I),  t from 0 to 1
    log p(x(1)) = log N(x(0); 0, I) - int_0^1 div v(x(t), t) dt                    (instantaneous change of variables)

The integral is taken backwards along the path that ends at x(1) (Chen et al. 2018, arXiv:1806.07366). With "euler",
step k of N is at t = (N - k)/N, the right end of its interval, as in FAC (arXiv:2602.18015): `integrate` forwards
starts at the left ends, so the one is not the other's exact inverse, and few steps flatten the tails of the density.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import UsageError

Field = Callable[[Float[Array, "*b d"], Float[Array, ""]], Float[Array, "*b d"]]
"""v(x, t) for rows of x that do not touch each other."""

METHODS = ("euler", "heun", "rk4")
"""Orders 1, 2 and 4; 1, 2 and 4 evaluations a step."""


def integrate(
    field: Field, x: Float[Array, "*b d"], steps: int, *, method: str = "euler", start: float = 0.0, end: float = 1.0
) -> Float[Array, "*b d"]:
    """x at time `end` of the solution that is `x` at `start`, by `steps` equal steps; `end` may be before `start`.

    Raises `UsageError` for an unknown method or steps < 1.
    """
    return _solve(lambda state, t: (field(state[0], t),), (x,), steps, method, start, end)[0]


def divergence(
    field: Field,
    x: Float[Array, "*b d"],
    t: Float[Array, ""],
    *,
    key: PRNGKeyArray | None = None,
    probes: int = 0,
    gaussian: bool = False,
) -> tuple[Float[Array, "*b d"], Float[Array, "*b"]]:
    """v(x, t) and its divergence, the trace of dv/dx.

    Without `probes` exactly, in d directional derivatives. With them by Hutchinson's estimate, the mean of
    e . (dv/dx) e over that many random directions e: Rademacher, whose variance is the smaller (none where dv/dx is
    diagonal), or standard normal. Needs `key` then.
    """
    at = lambda row: field(row, t)
    if probes < 1:
        size = x.shape[-1]

        def entry(i: Array) -> tuple[Array, Array]:
            unit = jnp.broadcast_to(jax.nn.one_hot(i, size, dtype=x.dtype), x.shape)
            v, turned = jax.jvp(at, (x,), (unit,))
            return v, (turned * unit).sum(-1)

        v, entries = jax.vmap(entry, out_axes=(None, 0))(jnp.arange(size))
        return v, entries.sum(0)
    assert key is not None, "Hutchinson's estimate needs a key"
    draw = jr.normal if gaussian else jr.rademacher

    def estimate(direction: Float[Array, "*b d"]) -> tuple[Array, Array]:
        v, turned = jax.jvp(at, (x,), (direction,))
        return v, (turned * direction).sum(-1)

    v, estimates = jax.vmap(estimate, out_axes=(None, 0))(draw(key, (probes, *x.shape), x.dtype))
    return v, estimates.mean(0)


def log_density(
    field: Field,
    x: Float[Array, "*b d"],
    steps: int,
    *,
    method: str = "euler",
    key: PRNGKeyArray | None = None,
    probes: int = 0,
    gaussian: bool = False,
) -> Float[Array, "*b"]:
    """log p(x) at the end of the flow from N(0, I), by `steps` steps backwards.

    `probes`, `gaussian` and `key` are those of `divergence`; directions are drawn anew for each time, so evaluations of
    "heun" and "rk4" at the same time share theirs. Raises `UsageError` for an unknown method or steps < 1.
    """

    def backwards(state: tuple[Array, Array], t: Float[Array, ""]) -> tuple[Array, Array]:
        # t moves from 1 to 0, so both have the sign of dt.
        k = None if key is None else jr.fold_in(key, jnp.round(t * 4096.0).astype(jnp.int32))
        return divergence(field, state[0], t, key=k, probes=probes, gaussian=gaussian)

    start, negative = _solve(backwards, (x, jnp.zeros(x.shape[:-1], x.dtype)), steps, method, 1.0, 0.0)
    normal = (-0.5 * jnp.square(start) - 0.5 * jnp.log(2.0 * jnp.pi).astype(x.dtype)).sum(-1)
    return normal + negative


def _solve(slope: Callable[[Any, Array], Any], state: Any, steps: int, method: str, start: float, end: float) -> Any:
    """The state at `end`, where `slope(state, t)` is its derivative."""
    if method not in METHODS:
        raise UsageError(f"unknown ODE method {method!r}: choose one of {', '.join(METHODS)}")
    if steps < 1:
        raise UsageError(f"an ODE needs at least 1 step, got {steps}")
    dtype = jax.tree.leaves(state)[0].dtype
    dt = (end - start) / steps
    add = lambda state, slope, by: jax.tree.map(lambda x, dx: x + by * dx, state, slope)

    def step(i: Array, state: Any) -> Any:
        t = jnp.asarray(start, dtype) + dt * i.astype(dtype)
        first = slope(state, t)
        if method == "euler":
            return add(state, first, dt)
        if method == "heun":
            second = slope(add(state, first, dt), t + dt)
            return add(add(state, first, dt / 2), second, dt / 2)
        second = slope(add(state, first, dt / 2), t + dt / 2)
        third = slope(add(state, second, dt / 2), t + dt / 2)
        fourth = slope(add(state, third, dt), t + dt)
        for part, share in ((first, 1 / 6), (second, 1 / 3), (third, 1 / 3), (fourth, 1 / 6)):
            state = add(state, part, share * dt)
        return state

    return jax.lax.fori_loop(0, steps, step, state)
