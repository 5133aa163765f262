"""Flow Q-learning (Park, Li, Levine 2025, arXiv:2502.02538).

    y     = r + gamma d agg_e Qbar_e(s', a'),  a' = clip(mu(s', z'), -1, 1),  d = discount                 (1)
    L_Q   = E[ (Q_e(s, a) - y)^2 ]                                                                        (2)
    L_BC  = E[ mean_j (v(s, x_t, t) - (a - x_0))_j^2 ],  x_t = (1 - t) x_0 + t a                          (3)
    L_pi  = alpha E[ mean_j (mu(s, z) - flow(s, z))_j^2 ] - E[ mean_e Q_e(s, clip(mu(s, z), -1, 1)) ]     (4)

flow(s, z) is where `flow_steps` Euler steps of v take z, clipped; x_0, z, z' ~ N(0, I), t ~ U(0, 1); j counts the
action's dimensions. v imitates the data and never sees a value; mu, which acts, learns to jump where v flows and to go
for value. agg is the mean, or the least with `q_agg` "min". With `normalize_q` the values in (4) are divided by their
mean size, held constant. Without `rl` there is no critic and mu is the flow in one step.
Order in one update: the critic with the old target and the old mu; v; mu with the old v and the new critic; the target
last, from the new critic.
Metrics: critic_loss (2), critic_mean E[Q(s, a)]; bc_loss (3); actor_loss (4), actor_distance the first mean in (4),
actor_q E[mean_e Q_e] of the second; *_grad_norm the global norm of that gradient. Without `rl` those of the critic and
actor_q are 0.
Differences from the official code: one Adam for each network instead of one for all; the actor sees the new critic and
the target is mixed from it, where the code takes the old ones.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_choice, require_continuous
from trimtab.nets.critic import Critic
from trimtab.ops import AGGREGATES, aggregate, copy, descend, polyak, td_target
from trimtab.policies.flow import FlowPolicy, OneStep, flow_matching_loss, imitator, student_loss


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FQL."""

    alpha: float = 10.0
    """weight of the distance in (4); grows with the scale of values unless `normalize_q` (cube-single: 300)."""
    normalize_q: bool = False
    """divide the values in (4) by their mean size; then try alpha from 0.03 to 10 on a new task."""
    q_agg: str = "mean"
    """agg in (1): "mean" or "min"."""
    flow_steps: int = 10
    """Euler steps of a rollout of v."""
    rl: bool = True
    """whether there is a critic at all; without, mu only imitates the data."""
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
    critic_members: int = 2
    """number of Q functions."""
    critic_norm: str | None = "layer_after"
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 2_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 5_000
    """environment steps with uniform random actions before the first update when trained online without data."""


class FQL(AbstractAgent):
    """See the module's docstring."""

    actor: OneStep
    flow: FlowPolicy
    critic: Critic
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "FQL":
        """A fresh agent. Raises `UsageError` for discrete actions or an unknown `q_agg`."""
        require_continuous(spec, "fql")
        require_choice(config, "q_agg", AGGREGATES)
        k_actor, k_flow, k_critic = jr.split(key, 3)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        shape: dict[str, Any] = dict(activation="gelu", init="glorot", **norm, **inputs)
        nets: dict[str, Any] = dict(
            actor=OneStep.create(spec, config.hidden, k_actor, **inputs),
            flow=imitator(spec, config.hidden, config.flow_steps, k_flow, **inputs),
            critic=Critic.create(spec, config.hidden, config.critic_members, k_critic, **shape),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["FQL", Metrics]:
        k_flow, k_actor, k_next = jr.split(key, 3)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        critic, opt_q, m_q = self._update_critic(batch, k_next)
        flow, opt_v, m_v = descend(tx, self.flow, opt["flow"], lambda v: self._bc_loss(v, batch, k_flow), "bc")
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

    def _update_critic(self, batch: Transition, key: PRNGKeyArray) -> tuple[Critic, optax.OptState, Metrics]:
        if not self.config.rl:
            names = ("critic_loss", "critic_grad_norm", "critic_mean")
            return self.critic, self.opt["critic"], {name: jnp.zeros(()) for name in names}
        tx, y = optax.adam(self.config.learning_rate), self._target(batch, key)
        loss = lambda q: self._critic_loss(q, y, batch)
        return descend(tx, self.critic, self.opt["critic"], loss, "critic")

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        q = self.target(batch.next_obs, self.actor(batch.next_obs, key))
        return td_target(batch.reward, batch.discount, aggregate(q, self.config.q_agg), self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _bc_loss(self, flow: FlowPolicy, batch: Transition, key: PRNGKeyArray):  # (3)
        return flow_matching_loss(flow.velocity, batch.obs, batch.action, key).mean(), {}

    def _actor_loss(
        self,
        actor: OneStep,
        critic: Critic,
        batch: Transition,
        start: Float[Array, "b act"],
        end: Float[Array, "b act"],
    ):  # (4)
        alpha = self.config.alpha
        if self.config.rl:
            return student_loss(actor, critic, batch.obs, start, end, alpha, self.config.normalize_q)
        distance = jnp.square(actor.mu(batch.obs, start) - end).mean()
        return alpha * distance, {"distance": distance, "q": jnp.zeros(())}
