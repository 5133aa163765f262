"""Generalised advantage estimation, and how well a critic fits it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gae(
    reward: Float[Array, "t n"],
    discount: Float[Array, "t n"],
    last: Bool[Array, "t n"],
    value: Float[Array, "t n"],
    next_value: Float[Array, "t n"],
    gamma: float,
    gae_lambda: float,
) -> Float[Array, "t n"]:
    """A_t = delta_t + gamma lambda A_(t+1), with delta_t = r_t + gamma d_t V(s'_t) - V(s_t) (Schulman et al. 2016).

    `discount` d is 0 where the episode terminated. The sum ends where the episode did (`last`), terminated or cut;
    `next_value` is V of the true final observation there, so that a cut is bootstrapped from.
    """
    delta = reward + gamma * discount * next_value - value
    decay = gamma * gae_lambda * (1.0 - last.astype(jnp.float32))

    def body(after: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = row
        advantage = delta + decay * after
        return advantage, advantage

    _, advantages = jax.lax.scan(body, jnp.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantages


def explained_variance(advantage: Float[Array, "*b"], value: Float[Array, "*b"]) -> Float[Array, ""]:
    """1 - Var[R - V] / Var[R] of the returns R = A + V: 1 where V is R, 0 where it is any constant."""
    return 1.0 - advantage.var() / ((advantage + value).var() + 1e-8)
