"""Policies made of policies: noise, clipping and best-of-n are objects, not flags."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Spec, UsageError
from trimtab.nets.critic import Critic
from trimtab.nets.discrete import DiscreteQ
from trimtab.nets.masks import allowed, features, masked
from trimtab.ops import aggregate
from trimtab.policies.distributions import Categorical


def _lead(obs: PyTree[Float[Array, "..."]]) -> tuple[int, ...]:
    """The leading (batch) axes of an observation whose leaves are vectors."""
    return jax.tree.leaves(obs)[0].shape[:-1]


class Uniform(AbstractPolicy):
    """Uniform actions, whatever the observation: the first steps of exploration."""

    action_size: int = eqx.field(static=True)
    discrete: bool = eqx.field(static=True)
    factors: tuple[int, ...] = eqx.field(static=True, default=())

    @classmethod
    def create(cls, spec: Spec) -> "Uniform":
        """Over [-1, 1]^act, or over the action indices that a mask allows when the spec is discrete."""
        return cls(spec.action_size, spec.discrete, spec.factors)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        mask = allowed(obs)
        if self.factors or (self.discrete and mask is not None):
            choices = self.factors or (self.action_size,)
            alike = jnp.zeros((*_lead(obs), sum(choices)))
            return Categorical.create(alike, choices, bool(self.factors), mask).sample(key)
        if self.discrete:
            return jr.randint(key, _lead(obs), 0, self.action_size)
        return jr.uniform(key, (*_lead(obs), self.action_size), minval=-1.0, maxval=1.0)


class Greedy(AbstractPolicy):
    """The discrete action of the highest value, among those that a mask allows."""

    critic: DiscreteQ

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        values = self.critic.values(self.critic(features(obs)))
        return masked(values, allowed(obs)).argmax(-1).astype(jnp.int32)


class EpsilonGreedy(AbstractPolicy):
    """With probability epsilon any action that a mask allows, else that of `inner`."""

    inner: Greedy
    epsilon: Float[Array, ""]

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        k_whether, k_which, k_inner = jr.split(key, 3)
        action = self.inner(obs, k_inner)
        anything = Uniform(self.inner.critic.actions, True)(obs, k_which)
        return jnp.where(jr.bernoulli(k_whether, self.epsilon, action.shape), anything, action)


class Noisy(AbstractPolicy):
    """`clip(inner(s) + sigma n, -1, 1)`, n standard normal: how DDPG and TD3 explore. With `random`, that share of all
    actions is uniform instead, as in hindsight's own experiments."""

    inner: AbstractPolicy
    sigma: Float[Array, ""]
    random: Float[Array, ""] | None = None

    @classmethod
    def create(cls, inner: AbstractPolicy, sigma: float, random: float = 0.0) -> "Noisy":
        """`sigma` is the standard deviation in units of the [-1, 1] action. Raises `UsageError` unless `random` is in
        [0, 1]."""
        if not 0.0 <= random <= 1.0:
            raise UsageError(f"the share of random actions must be in [0, 1], got {random}")
        return cls(inner, jnp.float32(sigma), jnp.float32(random) if random else None)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        k_inner, k_noise, *others = jr.split(key, 2 if self.random is None else 4)
        action = self.inner(obs, k_inner)
        action = jnp.clip(action + self.sigma * jr.normal(k_noise, action.shape), -1.0, 1.0)
        if self.random is None:
            return action
        k_whether, k_any = others
        anything = jr.uniform(k_any, action.shape, minval=-1.0, maxval=1.0)
        return jnp.where(jr.bernoulli(k_whether, self.random, (*action.shape[:-1], 1)), anything, action)


class Clip(AbstractPolicy):
    """`clip(inner(s), -bound, bound)`. `bound` in (0, 1]."""

    inner: AbstractPolicy
    bound: Float[Array, ""]

    @classmethod
    def create(cls, inner: AbstractPolicy, bound: float = 1.0) -> "Clip":
        """`bound` in units of the [-1, 1] action."""
        return cls(inner, jnp.float32(bound))

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return jnp.clip(self.inner(obs, key), -self.bound, self.bound)


class BestOfN(AbstractPolicy):
    """Of `n` samples of `inner`, the one with the highest Q, where Q is the least of the critic's members."""

    inner: AbstractPolicy
    critic: Critic
    n: int = eqx.field(static=True)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        actions, q = _candidates(self.inner, self.critic, self.n, obs, key)
        return _take(actions, q.argmax(0), obs)


class SoftmaxOfN(AbstractPolicy):
    """Of `n` samples of `inner`, one drawn with probabilities softmax(Q), Q as in `BestOfN`."""

    inner: AbstractPolicy
    critic: Critic
    n: int = eqx.field(static=True)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        k_inner, k_choice = jr.split(key)
        actions, q = _candidates(self.inner, self.critic, self.n, obs, k_inner)
        return _take(actions, jr.categorical(k_choice, q, axis=0), obs)


GUIDES = ("row", "batch", "plain")
"""What `Guided` may divide values by."""


class Guided(AbstractPolicy):
    """Of `n` samples a_i of `inner`, one drawn with probabilities softmax_i(xi q_i / c) (FINO), or the best where `xi`
    is None. q_i is the mean of the critic's members or the least of them, as `q_agg` says.

    c by `guide`, one of `GUIDES`: "row" is mean_i |q_i| of each state by itself, so that xi means the same whatever the
    scale of rewards; "batch" is that mean over all states of a call as well; "plain" is 1.
    """

    inner: AbstractPolicy
    critic: Critic
    xi: Float[Array, ""] | None
    n: int = eqx.field(static=True)
    q_agg: str = eqx.field(static=True)
    guide: str = eqx.field(static=True, default="row")

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        k_inner, k_choice = jr.split(key)
        actions, q = _candidates(self.inner, self.critic, self.n, obs, k_inner, self.q_agg)
        if self.xi is None:
            return _take(actions, q.argmax(0), obs)
        logits = self.xi * q
        if self.guide != "plain":
            size = jnp.abs(q).mean(0 if self.guide == "row" else None, keepdims=True) + 1e-6
            logits = logits / jnp.broadcast_to(size, q.shape)
        return _take(actions, jr.categorical(k_choice, logits, axis=0), obs)


def _candidates(
    inner: AbstractPolicy,
    critic: Critic,
    n: int,
    obs: PyTree[Float[Array, "..."]],
    key: PRNGKeyArray,
    q_agg: str = "min",
) -> tuple[Float[Array, "n b act"], Float[Array, "n b"]]:
    """`n` samples for each of the rows, all leading axes as one, and their values: `q_agg` over the members."""
    flat = jax.tree.map(lambda x: jnp.broadcast_to(x.reshape(1, -1, x.shape[-1]), (n, *_flat(x))), obs)
    actions = inner(flat, key)
    rows = actions.shape[0] * actions.shape[1]
    q = critic(jax.tree.map(lambda x: x.reshape(rows, -1), flat), actions.reshape(rows, -1))
    return actions, aggregate(q, q_agg).reshape(actions.shape[:2])


def _take(actions: Float[Array, "n b act"], which: Int[Array, " b"], obs: PyTree[Float[Array, "..."]]) -> Array:
    """The chosen sample of each row, with the leading axes of `obs`."""
    return jnp.take_along_axis(actions, which[None, :, None], axis=0)[0].reshape(*_lead(obs), -1)


def _flat(x: Array) -> tuple[int, int]:
    """(rows, features) once all leading axes are one."""
    rows = 1
    for size in x.shape[:-1]:
        rows *= size
    return rows, x.shape[-1]
