"""Several actions of a Gaussian policy for each state: what CQL's target and penalty are taken over.

    best_value = max_i min_e Q_e(s, a_i),  a_1 .. a_n ~ pi(s)
    proposals  : n uniform actions, n of pi(s) and n of pi(s'), with the log density each was drawn with

All 3n proposals are meant for s, those of pi(s') too (Kumar et al. 2020, arXiv:2006.04779, and its official code).
"""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.nets.critic import Critic
from trimtab.policies.gaussian import TanhGaussian


def best_value(
    actor: TanhGaussian, critic: Critic, obs: PyTree[Float[Array, "b ..."]], n: int, key: PRNGKeyArray
) -> Float[Array, " b"]:
    """What the best of `n` actions is worth, by the least of the critic's members."""
    actions, _ = actor.samples_and_log_prob(obs, n, key)
    return critic.many(obs, actions).min(0).max(0)


def proposals(
    actor: TanhGaussian,
    obs: PyTree[Float[Array, "b ..."]],
    next_obs: PyTree[Float[Array, "b ..."]],
    n: int,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "n3 b act"], Float[Array, "n3 b"]]:
    """3n actions and their log densities: uniform ones, then those of pi(s), then those of pi(s')."""
    k_uniform, k_here, k_next = jr.split(key, 3)
    here, log_here = actor.samples_and_log_prob(obs, n, k_here)
    after, log_after = actor.samples_and_log_prob(next_obs, n, k_next)
    uniform = jr.uniform(k_uniform, here.shape, minval=-1.0, maxval=1.0)
    flat = jnp.full(log_here.shape, -math.log(2.0) * here.shape[-1])
    actions = jnp.concatenate([uniform, here, after])
    return jax.lax.optimization_barrier((actions, jnp.concatenate([flat, log_here, log_after])))
