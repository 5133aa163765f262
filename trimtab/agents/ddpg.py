"""Deep deterministic policy gradient (Lillicrap et al. 2015, arXiv:1509.02971).

    y    = r + gamma d Qbar(s', pibar(s')),  d = discount
    L_Q  = E[ (Q(s, a) - y)^2 ]
    L_pi = -E[ Q(s, pi(s)) ] + w E[ mean_j pi(s)_j^2 ],  w = action_l2, 0 unless set

Order in one update: the critic with the old targets, the actor with the new critic, both targets last.
Metrics: critic_loss, critic_mean E[Q(s, a)]; actor_loss, actor_saturation share of |pi(s)| > 0.99; *_grad_norm the
global norm of that gradient.
Differences from the paper: Gaussian in place of Ornstein-Uhlenbeck noise, no weight decay, no batch normalisation,
widths (256, 256), one learning rate: as CleanRL and Stable-Baselines3 do.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import (
    AbstractAgent,
    AbstractPolicy,
    Metrics,
    Spec,
    require_continuous,
    require_share,
)
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak, td_target
from trimtab.policies.compose import Noisy
from trimtab.policies.deterministic import Deterministic


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of DDPG."""

    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    exploration_noise: float = 0.1
    """standard deviation of the noise on collected actions."""
    random_actions: float = 0.0
    """share of collected actions that are uniform random; 0.3 for robots in hindsight's own code."""
    action_l2: float = 0.0
    """weight of E[ mean_j pi(s)_j^2 ] in the actor's loss, against saturated actions; 1 for robots in that code."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critic."""
    critic_norm: str | None = None
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay."""
    learning_starts: int = 10_000
    """environment steps with uniform random actions before the first update."""


class DDPG(AbstractAgent):
    """See the module's docstring."""

    actor: Deterministic
    critic: Critic
    target_actor: Deterministic
    target_critic: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "DDPG":
        """A fresh agent. Raises `UsageError` for discrete actions, or a share of random ones outside [0, 1]."""
        require_continuous(spec, "ddpg")
        require_share(config, "random_actions")
        k_actor, k_critic = jr.split(key)
        actor = Deterministic.create(spec, config.hidden, k_actor)
        critic = Critic.create(
            spec, config.hidden, 1, k_critic, norm=config.critic_norm, norm_layers=config.norm_layers
        )
        tx = optax.adam(config.learning_rate)
        nets: dict[str, Any] = dict(actor=actor, critic=critic)
        return cls(
            **nets,
            target_actor=copy(actor),
            target_critic=copy(critic),
            opt={name: tx.init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return Noisy.create(self.actor, self.config.exploration_noise, self.config.random_actions)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["DDPG", Metrics]:
        del key  # nothing in DDPG's update is sampled
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        value = self.target_critic(batch.next_obs, self.target_actor(batch.next_obs))[0]
        y = td_target(batch.reward, batch.discount, value, self.config.gamma)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch), "actor"
        )
        targets = polyak((actor, critic), (self.target_actor, self.target_critic), self.config.tau)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target_actor=targets[0],
            target_critic=targets[1],
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):
        q = critic(batch.obs, batch.action)[0]
        return jnp.square(q - y).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: Deterministic, critic: Critic, batch: Transition):
        action = actor(batch.obs)
        saturation = (jnp.abs(action) > 0.99).mean(dtype=jnp.float32)
        loss = -critic(batch.obs, action)[0].mean()
        if self.config.action_l2:
            loss = loss + self.config.action_l2 * jnp.square(action).mean()
        return loss, {"saturation": saturation}
