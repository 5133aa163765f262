"""QC-FQL, Q-chunking on flow Q-learning (Li, Zhou, Levine 2025, arXiv:2507.07969): FQL over chunks of actions.

A chunk a = (a_t, .., a_{t+h-1}) is one action of flow, actor and critic, executed open loop. With R = sum_i gamma^i
r_{t+i}, m = 0 if a step of the window terminated, v = 1 if the window lies within one trajectory, and v_i = 1 for
its steps up to the end of its trajectory. Data that were recorded without a task, as OGBench's, go on after a success:
there windows reach over it, with m = 0.

    y     = R + gamma^h m agg_e Qbar_e(s_{t+h}, a'),  a' = clip(mu(s_{t+h}, z'), -1, 1)                          (1)
    L_Q   = E[ v (Q_e(s, a) - y)^2 ]                                                                            (2)
    L_BC  = E[ mean_j v_j (v(s, x_t, t) - (a - x_0))_j^2 ],  x_t = (1 - t) x_0 + t a                            (3)
    L_pi  = alpha E[ mean_j (mu(s, z) - flow(s, z))_j^2 ] - E[ mean_e Q_e(s, clip(mu(s, z), -1, 1)) ]           (4)

The target (1) is one of h steps that needs no correction, for what was done in them is the critic's own action. The
rest is FQL (arXiv:2502.02538); with h = 1 it is FQL itself. j counts the numbers of a chunk, each of its own step.
Order in one update: the critic with the old target and the old mu; v; mu with the old v and the new critic; the target
last, from the new critic.
Metrics: critic_loss (2), critic_mean E[Q(s, a)]; bc_loss (3); actor_loss (4), actor_distance the first mean in (4),
actor_q E[mean_e Q_e] of the second; *_grad_norm the global norm of that gradient.
Differences from the official code: one Adam for each network instead of one for all; the actor sees the new critic and
the target is mixed from it, where the code takes the old ones; after offline updates it learns from the first step
online, there from the 5,000th.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Chunk
from trimtab.core import (
    AbstractAgent,
    AbstractPolicy,
    Metrics,
    Spec,
    require_choice,
    require_continuous,
    require_counts,
)
from trimtab.nets.critic import Critic
from trimtab.ops import AGGREGATES, aggregate, copy, descend, polyak
from trimtab.policies.flow import FlowPolicy, OneStep, flow_matching_loss, imitator, student_loss


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of QC-FQL."""

    chunk: int = 5
    """h, actions planned and executed at once."""
    alpha: float = 100.0
    """weight of the distance in (4); grows with the scale of values unless `normalize_q` (cube-single: 300)."""
    normalize_q: bool = False
    """divide the values in (4) by their mean size; then try alpha from 0.03 to 10 on a new task."""
    q_agg: str = "mean"
    """agg in (1): "mean" or "min"."""
    flow_steps: int = 10
    """Euler steps of a rollout of v."""
    learning_rate: float = 3e-4
    """Adam's step size for all networks."""
    gamma: float = 0.99
    """discount factor, of each step."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """widths of the hidden layers of all networks; gelu."""
    critic_members: int = 2
    """number of Q functions."""
    critic_norm: str | None = "layer_after"
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """windows in one update."""
    buffer_size: int = 2_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 5_000
    """environment steps before the first update where batches are symmetric or nothing was learnt before."""


class QCFQL(AbstractAgent):
    """See the module's docstring."""

    actor: OneStep
    flow: FlowPolicy
    critic: Critic
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "QCFQL":
        """A fresh agent. Raises `UsageError` for discrete actions, chunk < 1, or an unknown `q_agg`."""
        require_continuous(spec, "qc-fql")
        require_counts(config, "chunk")
        require_choice(config, "q_agg", AGGREGATES)
        chunks = replace(
            spec,
            action_size=spec.action_size * config.chunk,
            action_low=spec.action_low * config.chunk,
            action_high=spec.action_high * config.chunk,
        )
        k_actor, k_flow, k_critic = jr.split(key, 3)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        shape: dict[str, Any] = dict(activation="gelu", init="glorot", **norm, **inputs)
        nets: dict[str, Any] = dict(
            actor=OneStep.create(chunks, config.hidden, k_actor, **inputs),
            flow=imitator(chunks, config.hidden, config.flow_steps, k_flow, **inputs),
            critic=Critic.create(chunks, config.hidden, config.critic_members, k_critic, **shape),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Chunk, key: PRNGKeyArray) -> tuple["QCFQL", Metrics]:
        k_flow, k_actor, k_next = jr.split(key, 3)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        action = batch.action.reshape(len(batch.reward), -1)
        y = self._target(batch, k_next)
        critic, opt_q, m_q = descend(
            tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch, action), "critic"
        )
        flow, opt_v, m_v = descend(tx, self.flow, opt["flow"], lambda v: self._bc_loss(v, batch, action, k_flow), "bc")
        start, _ = self.flow.draw(batch.obs, k_actor)
        end = self.flow.rollout(batch.obs, start, None)[0].action
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch, start, end), "actor"
        )
        new = replace(
            self,
            actor=actor,
            flow=flow,
            critic=critic,
            target=polyak(critic, self.target, self.config.tau),
            opt=dict(actor=opt_pi, flow=opt_v, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_v | m_pi

    def _target(self, batch: Chunk, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        gamma, h = self.config.gamma, self.config.chunk
        powers = jnp.broadcast_to(gamma ** jnp.arange(h, dtype=jnp.float32), batch.reward.shape)
        q = self.target(batch.next_obs, self.actor(batch.next_obs, key))
        value = aggregate(q, self.config.q_agg)
        return (powers * batch.reward).sum(1) + gamma**h * batch.discount.min(1) * value

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Chunk, action: Float[Array, "b plan"]):  # (2)
        q = critic(batch.obs, action)
        error = jnp.square(q - jnp.broadcast_to(y, q.shape)) * jnp.broadcast_to(batch.valid[:, -1], q.shape)
        return error.mean(), {"mean": q.mean()}

    def _bc_loss(self, flow: FlowPolicy, batch: Chunk, action: Float[Array, "b plan"], key: PRNGKeyArray):  # (3)
        error = flow_matching_loss(flow.velocity, batch.obs, action, key)
        return (error * jnp.repeat(batch.valid, action.shape[1] // self.config.chunk, axis=1)).mean(), {}

    def _actor_loss(
        self,
        actor: OneStep,
        critic: Critic,
        batch: Chunk,
        start: Float[Array, "b plan"],
        end: Float[Array, "b plan"],
    ):  # (4)
        return student_loss(actor, critic, batch.obs, start, end, self.config.alpha, self.config.normalize_q)
