"""Implicit flow Q-learning: IQL's values with a flow that imitates (Park, Li, Levine 2025, arXiv:2502.02538).

    L_V  = E[ |tau - 1(u < 0)| u^2 ],  u = min_e Qbar_e(s, a) - V(s)                        (1)
    L_Q  = E[ (r + gamma d V(s') - Q_e(s, a))^2 ],  d = discount, 0 if terminated           (2)
    L_pi = E[ mean_j (v(s, x_t, t) - (a - x_0))_j^2 ],  x_t = (1 - t) x_0 + t a             (3)
    a    = the best by min_e Q_e(s, .) of n samples of the flow: Euler steps from N(0, I), clipped    (4)

x_0 ~ N(0, I), t ~ U(0, 1), j counts the action's dimensions. The flow never sees a value: all improvement is in (4),
which is how it acts and what is evaluated. It is IDQL (arXiv:2304.10573) with a flow in place of its diffusion.
Order in one update: V with the old target, the flow, Q with the new V, targets last.
Metrics: value_loss (1), value_mean E[V]; actor_loss (3); critic_loss (2), critic_mean E[Q]; *_grad_norm the global norm
of that gradient.
Differences from the official code: one Adam for each network instead of one for all, Q sees the new V and the target is
mixed from the new Q, where the code takes the old ones.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous
from trimtab.nets.critic import Critic, Value
from trimtab.ops import copy, descend, expectile_loss, polyak, td_target
from trimtab.policies.compose import BestOfN
from trimtab.policies.flow import FlowPolicy, flow_matching_loss, imitator


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of IFQL."""

    expectile: float = 0.9
    """tau in (1)."""
    candidates: int = 32
    """n in (4)."""
    flow_steps: int = 10
    """Euler steps of a rollout."""
    learning_rate: float = 3e-4
    """Adam's step size for all networks."""
    gamma: float = 0.99
    """discount factor; 0.995 for long tasks."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """widths of the hidden layers of all networks; gelu."""
    critic_norm: str | None = "layer_after"
    """LayerNorm in Q and V: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 2_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 5_000
    """environment steps with uniform random actions before the first update when trained online without data."""


class IFQL(AbstractAgent):
    """See the module's docstring."""

    actor: FlowPolicy
    critic: Critic
    value: Value
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "IFQL":
        """A fresh agent. Raises `UsageError` for discrete actions or no candidates."""
        require_continuous(spec, "ifql")
        if config.candidates < 1:
            raise UsageError(f"candidates must be at least 1, got {config.candidates}")
        k_actor, k_critic, k_value = jr.split(key, 3)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        shape: dict[str, Any] = dict(activation="gelu", init="glorot", **norm, **inputs)
        nets: dict[str, Any] = dict(
            actor=imitator(spec, config.hidden, config.flow_steps, k_actor, **inputs),
            critic=Critic.create(spec, config.hidden, 2, k_critic, **shape),
            value=Value.create(spec, config.hidden, k_value, **shape),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return BestOfN(self.actor, self.critic, self.config.candidates)  # (4)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.policy

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["IFQL", Metrics]:
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        q_bar = self.target(batch.obs, batch.action).min(0)
        value, opt_v, m_v = descend(tx, self.value, opt["value"], lambda v: self._value_loss(v, q_bar, batch), "value")
        actor, opt_pi, m_pi = descend(tx, self.actor, opt["actor"], lambda pi: self._bc_loss(pi, batch, key), "actor")
        critic, opt_q, m_q = descend(
            tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, value, batch), "critic"
        )
        new = replace(
            self,
            actor=actor,
            critic=critic,
            value=value,
            target=polyak(critic, self.target, self.config.tau),
            opt=dict(actor=opt_pi, critic=opt_q, value=opt_v),
            step=self.step + 1,
        )
        return new, m_v | m_pi | m_q

    def _value_loss(self, value: Value, q_bar: Float[Array, " b"], batch: Transition):  # (1)
        v = value(batch.obs)
        return expectile_loss(q_bar - v, self.config.expectile), {"mean": v.mean()}

    def _bc_loss(self, actor: FlowPolicy, batch: Transition, key: PRNGKeyArray):  # (3)
        return flow_matching_loss(actor.velocity, batch.obs, batch.action, key).mean(), {}

    def _critic_loss(self, critic: Critic, value: Value, batch: Transition):  # (2)
        y = td_target(batch.reward, batch.discount, value(batch.next_obs), self.config.gamma)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}
