"""The gradient through a flow policy's rollout: where it grows, fades, or stays (SAC Flow, arXiv:2509.25756, Fig. 6a).

    G_i = mean_b || d L_b / d x_i ||_2,  i = 0 .. K-1     by adding zeros e_i to x_i before step i, gradient at e_i
    P_i = || d mean_b L_b / d theta, through call i alone ||_2
    L_b = -min_e Q_e(s_b, a_b)                            the value part of one row's actor loss

The exact definition is ours: the paper shows norms over steps without one. G_0 / G_{K-1} tells how much a step at the
start of the rollout moves the loss, against one at its end: far above 1 grows, near 0 vanishes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractAgent, Metrics, UsageError
from trimtab.diagnostics.health import nets_of
from trimtab.nets.critic import Critic, CrossQCritic
from trimtab.policies.flow import FlowPolicy, Rollout

GROWS, VANISHES = 4.0, 0.1
"""G_0 / G_{K-1} above and below which a verdict is not "flat". Ours. Only growth is a warning: a policy that has
settled on one action takes every x_0 there, so its early gradients fade however well it was trained."""

Loss = Callable[[Rollout], Float[Array, " b"]]
"""One loss a row of a rollout."""


def rollout_grad_norms(
    policy: FlowPolicy, loss: Loss, obs: PyTree[Float[Array, "b ..."]], key: PRNGKeyArray
) -> Float[Array, " k"]:
    """G_0 .. G_{K-1} over the rows of `obs`."""
    start, noise = policy.draw(obs, key)
    rows = lambda nudges: loss(policy.rollout(obs, start, noise, nudges=nudges)[0]).sum()
    nudges = jnp.zeros((policy.steps, *start.shape))
    return jnp.linalg.norm(jax.grad(rows)(nudges), axis=-1).mean(-1)


def call_grad_norms(
    policy: FlowPolicy, loss: Loss, obs: PyTree[Float[Array, "b ..."]], key: PRNGKeyArray
) -> Float[Array, " k"]:
    """P_0 .. P_{K-1} over the rows of `obs`."""
    start, noise = policy.draw(obs, key)
    mean = lambda calls: loss(policy.rollout(obs, start, noise, calls=calls)[0]).mean()
    grads = jax.grad(mean)([policy.velocity] * policy.steps)
    square = lambda tree: jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)]).sum()
    return jnp.sqrt(jnp.stack([square(grad) for grad in grads]))


def value_loss(critic: Critic | CrossQCritic, obs: PyTree[Float[Array, "b ..."]]) -> Loss:
    """L_b = -min_e Q_e(s, a)."""
    return lambda rollout: -critic(obs, rollout.action).min(0)


def rollout_grad(agent: AbstractAgent, source: Any, state: Any, key: PRNGKeyArray, batches: int) -> Metrics:
    """rollout_grad/step_I (G_I), rollout_grad/ratio (G_0 / G_{K-1}) and rollout_grad/call_I (P_I), each a mean over
    `batches` batches; empty for an agent whose policy is no flow."""
    if not nets_of(agent, FlowPolicy):
        return {}
    each = jax.lax.map(lambda k: measure(agent, source.batch(state, k), k), jax.random.split(key, batches))
    return {f"rollout_grad/{name}": value.mean() for name, value in each.items()}


def measure(agent: AbstractAgent, batch: Any, key: PRNGKeyArray) -> Metrics:
    """step_I, call_I and ratio on one batch: what a run can log while it trains. Raises `UsageError` without a flow."""
    policies, critics = nets_of(agent, FlowPolicy), nets_of(agent, Critic | CrossQCritic)
    if not (policies and critics):
        raise UsageError("the probe rollout-grad needs an agent with a flow policy and a critic, such as sac-flow")
    policy, loss = policies[0][1], value_loss(critics[0][1], batch.obs)
    steps, calls = rollout_grad_norms(policy, loss, batch.obs, key), call_grad_norms(policy, loss, batch.obs, key)
    found = {f"step_{i}": steps[i] for i in range(len(steps))} | {f"call_{i}": calls[i] for i in range(len(calls))}
    return found | {"ratio": steps[0] / jnp.maximum(steps[-1], 1e-30)}


def rollout_verdicts(found: dict[str, float]) -> list[dict[str, str]]:
    """What rollout_grad/ratio means, one line as in `health.verdicts`; none if it was not measured."""
    if "rollout_grad/ratio" not in found:
        return []
    ratio = found["rollout_grad/ratio"]
    text = f"rollout_grad/ratio {ratio:.2f}: the gradient through the rollout is "
    if ratio > GROWS:
        level, text = "warn", f"{text}growing x{ratio:.1f} on its way back: try the gated velocity or fewer steps"
    elif ratio < VANISHES:
        level = "ok"
        text = f"{text}vanishing on its way back: the last steps decide the action, as when there is one best action"
    else:
        level, text = "ok", f"{text}flat"
    return [{"name": "rollout_grad/ratio", "level": level, "text": text}]
