"""Does learning a good decision also teach a bad one? Gradient coupling of a control policy (arXiv:2509.23870).

    K   = < grad_theta log pi(a|s), grad_theta log pi(a'|s') >                                                  (1)
    d log pi(a'|s') = eta A K   after a step of size eta on (s, a) with advantage A, to first order             (2)
    CI  = mean cos(grad_theta log pi(a|s), grad_theta log pi(a'|s')) over good (s, a) and bad (s', a')          (3)

A deterministic policy counts as a normal of unit variance: log pi(a|s) = -|a - pi(s)|^2 / 2 up to a constant. Actors
of PPO have the log-density of their head, discrete ones too. A flow's has no closed form, a greedy policy has none. In
`trimtab diagnose` the good and the bad are the sixteen rows of a batch with the highest advantage
Q(s, a) - Q(s, pi(s)) under the mean critic, and the sixteen with the lowest (a quarter each of a batch below 64); that
choice, and the use for control, are ours.

| metric | formula |
|---|---|
| coupling/index | CI (3) |
| coupling/within | the same cosine among good decisions, each pair of different rows once: what alike means here |
| coupling/kernel | mean K (1) |
| coupling/alike | share of good and bad pairs whose cosine is above 1/2 |
"""

from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractAgent, AbstractPolicy, Metrics
from trimtab.diagnostics.health import nets_of
from trimtab.nets.critic import Critic, CrossQCritic
from trimtab.nets.masks import allowed
from trimtab.nets.running import Normaliser
from trimtab.nets.standardise import Standardise
from trimtab.policies.actor import Sample, lead, normalised
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.gaussian import Gaussian, TanhGaussian
from trimtab.policies.polynomial import PolynomialPolicy

ROWS = 16
"""Good decisions, and bad ones, that gradients are taken of: each costs the memory of one set of parameters."""

COUPLED, APART = 0.5, 0.1
"""Indices above and below which a verdict is not "partly". Ours."""

Policy = Deterministic | Gaussian | TanhGaussian | PolynomialPolicy | Sample
"""Policies with a log-density; a recurrent actor is asked as at the start of an episode."""


def log_prob(policy: Policy, obs: PyTree[Float[Array, "..."]], action: Array) -> Float[Array, "*b"]:
    """log pi(a|s), up to a constant."""
    if isinstance(policy, Deterministic):
        return -0.5 * jnp.square(action - policy(obs)).sum(-1)
    if isinstance(policy, PolynomialPolicy):
        return policy.distribution(obs).log_prob(action)
    if isinstance(policy, Sample):
        memory = policy.actor.net.memory(lead(obs))
        return policy.actor.step(normalised(obs, policy.inputs), allowed(obs), memory)[0].log_prob(action)
    return policy.log_prob(obs, action)


def gradients(policy: Policy, obs: PyTree[Float[Array, "n ..."]], action: Array) -> Float[Array, "n p"]:
    """grad_theta log pi(a|s) of each row, flat. What normalises observations is not trained."""
    never = lambda node: isinstance(node, Normaliser | Standardise)
    trained, rest = eqx.partition(policy, jax.tree.map(lambda node: not never(node), policy, is_leaf=never))

    def one(row: Any, a: Array) -> Array:
        found = jax.grad(lambda part: log_prob(eqx.combine(part, rest), row, a))(trained)
        return jax.flatten_util.ravel_pytree(found)[0]

    return jax.vmap(one)(obs, action)


def coupling(
    policy: Policy,
    good_obs: PyTree[Float[Array, "n ..."]],
    good: Array,
    bad_obs: PyTree[Float[Array, "m ..."]],
    bad: Array,
) -> Metrics:
    """The metrics of this file, without their prefix."""
    g, h = gradients(policy, good_obs, good), gradients(policy, bad_obs, bad)
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    across, among = unit(g) @ unit(h).T, unit(g) @ unit(g).T
    n = len(g)
    return {
        "index": across.mean(),
        "within": (among.sum() - jnp.trace(among)) / max(1, n * (n - 1)),
        "kernel": (g @ h.T).mean(),
        "alike": (across > 0.5).mean(dtype=jnp.float32),
    }


def couple(agent: AbstractAgent, source: Any, state: Any, key: PRNGKeyArray, batches: int) -> Metrics:
    """coupling/NAME, each a mean over `batches` batches; empty for an agent without a critic, or whose policy has no
    log-density (a flow's, a greedy one)."""
    policies, critics = nets_of(agent, Policy), nets_of(agent, Critic | CrossQCritic)
    if not (policies and critics):
        return {}
    policy, critic = policies[0][1], critics[0][1]

    def one(k: PRNGKeyArray) -> Metrics:
        k_batch, k_action = jax.random.split(k)
        batch = source.batch(state, k_batch)
        rows = min(ROWS, max(1, len(batch.action) // 4))
        advantage = (critic(batch.obs, batch.action) - critic(batch.obs, act(policy, batch.obs, k_action))).mean(0)
        order = jnp.argsort(advantage)
        take = lambda index: (jax.tree.map(lambda x: x[index], batch.obs), batch.action[index])
        return coupling(policy, *take(order[-rows:]), *take(order[:rows]))

    found = jax.lax.map(one, jax.random.split(key, batches))
    return {f"coupling/{name}": value.mean() for name, value in found.items()}


def act(policy: AbstractPolicy, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
    """The policy's action; the mode where there is one."""
    if isinstance(policy, PolynomialPolicy):
        return policy.distribution(obs).mode()
    return policy.mode(obs) if isinstance(policy, Gaussian | TanhGaussian) else policy(obs, key)


def coupling_verdicts(found: dict[str, float]) -> list[dict[str, str]]:
    """What coupling/index means, one line as in `health.verdicts`; none if it was not measured."""
    if "coupling/index" not in found:
        return []
    index, within = found["coupling/index"], found["coupling/within"]
    text = f"coupling/index {index:.2f} (among good decisions {within:.2f}): "
    if index > COUPLED:
        level, text = "warn", f"{text}learning good decisions raises bad ones too: try a wider network"
    elif index < APART:
        level, text = "ok", f"{text}good and bad decisions are told apart"
    else:
        level, text = "ok", f"{text}good and bad decisions are partly coupled"
    return [{"name": "coupling/index", "level": level, "text": text}]
