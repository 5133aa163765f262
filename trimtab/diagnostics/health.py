"""First aid for any agent: gradient norms, Q statistics, dead units. Each probe is a pure function of agent and
batches.

| metric | formula |
|---|---|
| gradient/NAME | mean over batches of the global gradient norm of the loss NAME, at the present parameters |
| gradient/NAME_spread | the largest of those norms over their mean |
| q/mean, q/max | mean and largest |Q(s, a)| over batch rows and members |
| q/reward_scale | largest |r| over the batch |
| q/disagreement | mean over rows of the standard deviation over members, over the standard deviation of Q over rows |
| dead/PATH | share of hidden units of a network that are zero (relu) or constant on all rows |
| params/largest | largest absolute weight or bias of a network |
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray

from trimtab.core import AbstractAgent, Metrics
from trimtab.nets.critic import Critic, CrossQCritic
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.standardise import Standardise, flatten

DEAD_WARN, DEAD_BAD = 0.25, 0.6
"""Shares of dead units from which a network is called impaired, and crippled. Ours."""

SPREAD_WARN = 10.0
"""Largest over mean gradient norm from which gradients are called spiky. Ours."""


def gradients(agent: AbstractAgent, source: Any, state: Any, key: PRNGKeyArray, batches: int) -> Metrics:
    """Gradient norms over `batches` batches, without changing the agent."""

    def one(k: PRNGKeyArray) -> Metrics:
        k_batch, k_update = jr.split(k)
        metrics = agent.update(source.batch(state, k_batch), k_update)[1]
        return {name.removesuffix("_grad_norm"): v for name, v in metrics.items() if name.endswith("_grad_norm")}

    norms = jax.lax.map(one, jr.split(key, batches))
    found: Metrics = {}
    for name, values in norms.items():
        found[f"gradient/{name}"] = jnp.nanmean(values)
        found[f"gradient/{name}_spread"] = jnp.nanmax(values) / jnp.maximum(jnp.nanmean(values), 1e-12)
    return found


def values(agent: AbstractAgent, source: Any, state: Any, key: PRNGKeyArray, batches: int) -> Metrics:
    """Statistics of every critic on one batch; empty for an agent without one."""
    batch = source.batch(state, key)
    critics = [net for _, net in nets_of(agent, Critic | CrossQCritic)][
        :1
    ]  # the online critic comes first, its target later
    found: Metrics = {}
    for critic in critics:
        q = critic(batch.obs, _action(batch))
        found |= {
            "q/mean": q.mean(),
            "q/max": jnp.abs(q).max(),
            "q/reward_scale": jnp.abs(batch.reward).max(),
            "q/disagreement": q.std(0).mean() / jnp.maximum(q.mean(0).std(), 1e-12),
        }
    return found


def units(agent: AbstractAgent, source: Any, state: Any, key: PRNGKeyArray, batches: int) -> Metrics:
    """The share of dead hidden units of every network that takes an observation, or an observation and an action."""
    batch = source.batch(state, key)
    moments = [node for _, node in nets_of(agent, Standardise)]  # the same in all networks
    obs = flatten(batch.obs, moments[0] if moments else None)
    inputs = [obs, concat(obs, _action(batch))]
    found: Metrics = {}
    for path, net in nets_of(agent, MLP):
        width = net.layers[0].weight.shape[-2]
        fitting = [x for x in inputs if x.shape[-1] == width]
        if fitting and len(net.layers) > 1:
            shares = [_dead(layer) for layer in net.hidden(fitting[0])]
            found[f"dead/{path}"] = jnp.stack(shares).mean()
    largest = [jnp.abs(x).max() for _, net in nets_of(agent, MLP) for x in jax.tree.leaves(net)]
    return found | {"params/largest": jnp.stack(largest).max()}


def _action(batch: Any) -> Array:
    """The actions of a batch; those of a window of steps are one action of who plans them all at once."""
    return batch.action.reshape(len(batch.action), -1) if batch.action.ndim == 3 else batch.action


def _dead(activations: Array) -> Array:
    """The share of units whose activation does not vary over the batch axis (for relu: always zero)."""
    low, high = activations.min(-2), activations.max(-2)
    return (high - low < 1e-6).mean(dtype=jnp.float32)


def nets_of(agent: AbstractAgent, kind: Any) -> list[tuple[str, Any]]:
    """Every part of the agent that is an instance of `kind`, with the path of the field that holds it."""
    leaves = jax.tree_util.tree_leaves_with_path(agent, is_leaf=lambda x: isinstance(x, kind))
    found = [
        (jax.tree_util.keystr(path, simple=True, separator="."), net) for path, net in leaves if isinstance(net, kind)
    ]
    return [(path, net) for path, net in found if not path.startswith("opt")]


PROBES: dict[str, Callable[..., Metrics]] = {"gradients": gradients, "values": values, "units": units}
"""What `trimtab diagnose` runs by default."""


def verdicts(found: dict[str, float], gamma: float) -> list[dict[str, str]]:
    """What the numbers mean, one line each: {"name", "level": ok|warn|bad, "text"}."""
    lines: list[dict[str, str]] = []
    say = lambda name, level, text: lines.append({"name": name, "level": level, "text": text})
    for name, value in found.items():
        if value != value or value in (float("inf"), float("-inf")):
            say(name, "bad", f"{name} is {value}: the run has diverged; start again from an earlier checkpoint")
    for name, value in found.items():
        if name.startswith("gradient/") and not name.endswith("_spread"):
            spread = found[f"{name}_spread"]
            text = f"{name} {value:.3g}, largest {spread:.1f}x the mean"
            if spread > SPREAD_WARN:
                say(name, "warn", f"{text}: spiky gradients; try a smaller learning rate or max_grad_norm")
            elif value < 1e-8:
                say(name, "warn", f"{text}: nothing is learnt here; the loss is flat (saturated actions? dead units?)")
            else:
                say(name, "ok", text)
        if name.startswith("dead/"):
            text = f"{name} {value:.0%} of hidden units are dead"
            if value > DEAD_BAD:
                say(name, "bad", f"{text}: the network is crippled; lower the learning rate or use critic_norm layer")
            elif value > DEAD_WARN:
                say(name, "warn", f"{text}: capacity is being lost; consider critic_norm layer")
            else:
                say(name, "ok", text)
    if "q/max" in found:
        bound = found["q/reward_scale"] / (1.0 - gamma)
        text = f"q/max {found['q/max']:.3g}, q/mean {found['q/mean']:.3g}; rewards of this size can sum to {bound:.3g}"
        if found["q/max"] > 2.0 * bound:
            say("q/max", "bad", f"{text}: values are beyond any possible return, the critic is diverging")
        elif found["q/max"] > bound:
            say("q/max", "warn", f"{text}: values are larger than the rewards in this batch allow")
        else:
            say("q/max", "ok", text)
        if found["q/disagreement"] > 0.5:
            say(
                "q/disagreement",
                "warn",
                f"critics disagree: {found['q/disagreement']:.2f} of the spread of Q over states",
            )
    return lines
