"""Implicit Q-learning (Kostrikov et al. 2021, arXiv:2110.06169).

    L_V  = E[ |tau - 1(u < 0)| u^2 ],  u = min_e Qbar_e(s, a) - V(s)                        (5)
    L_Q  = E[ (r + gamma d V(s') - Q_e(s, a))^2 ],  d = discount, 0 if terminated           (6)
    L_pi = -E[ min(exp(beta u), w_max) log pi(a | s) ]                                      (7)

Order in one update: V with the old target, pi and Q with the new V, targets last.
Metrics: value_loss (5), value_mean E[V]; actor_loss (7), actor_weight mean of exp(beta u) after the cap; critic_loss
(6), critic_mean E[Q]; *_grad_norm the global norm of that gradient.
Differences from the official code: no cosine decay of the actor's learning rate, which needs the length of the run;
the rest of the maths is the same. Trained online it collects with its own Gaussian.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_continuous
from trimtab.nets.critic import Critic, Value
from trimtab.ops import copy, descend, expectile_loss, polyak, td_target
from trimtab.policies.gaussian import Gaussian, Mean


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of IQL."""

    expectile: float = 0.7
    """tau in (5); 0.9 for AntMaze."""
    beta: float = 3.0
    """inverse temperature in (7); 10 for AntMaze."""
    max_weight: float = 100.0
    """w_max in (7)."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    learning_rate: float = 3e-4
    """Adam's step size for all networks."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of all networks."""
    critic_norm: str | None = None
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 5_000
    """environment steps with uniform random actions before the first update when trained online."""


class IQL(AbstractAgent):
    """See the module's docstring."""

    actor: Gaussian
    critic: Critic
    value: Value
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "IQL":
        """A fresh agent. Raises `UsageError` for discrete actions."""
        require_continuous(spec, "iql")
        k_actor, k_critic, k_value = jr.split(key, 3)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        inputs = config.normalize_obs
        nets: dict[str, Any] = dict(
            actor=Gaussian.create(spec, config.hidden, k_actor, standardise=inputs),
            critic=Critic.create(spec, config.hidden, 2, k_critic, standardise=inputs, **norm),
            value=Value.create(spec, config.hidden, k_value, standardise=inputs),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Mean(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["IQL", Metrics]:
        del key  # nothing in IQL is sampled
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        q_bar = self.target(batch.obs, batch.action).min(0)
        value, opt_v, m_v = descend(tx, self.value, opt["value"], lambda v: self._value_loss(v, q_bar, batch), "value")
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, value, q_bar, batch), "actor"
        )
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

    def _value_loss(self, value: Value, q_bar: Float[Array, " b"], batch: Transition):  # (5)
        v = value(batch.obs)
        return expectile_loss(q_bar - v, self.config.expectile), {"mean": v.mean()}

    def _actor_loss(self, actor: Gaussian, value: Value, q_bar: Float[Array, " b"], batch: Transition):  # (7)
        weight = jnp.minimum(jnp.exp(self.config.beta * (q_bar - value(batch.obs))), self.config.max_weight)
        return -(weight * actor.log_prob(batch.obs, batch.action)).mean(), {"weight": weight.mean()}

    def _critic_loss(self, critic: Critic, value: Value, batch: Transition):  # (6)
        y = td_target(batch.reward, batch.discount, value(batch.next_obs), self.config.gamma)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}
