"""Advantage-weighted actor-critic (Nair et al. 2020, arXiv:2006.09359).

    y    = r + gamma d min_e Qbar_e(s', a'),  a' ~ pi(s'),  d = discount, 0 if terminated    (1)
    L_Q  = E[ (Q_e(s, a) - y)^2 ]                                                           (2)
    A    = min_e Q_e(s, a) - min_e Q_e(s, a~),  a~ ~ pi(s)                                  (3)
    L_pi = -E[ min(exp(A / lambda), w_max) log pi(a | s) ]                                  (4)

Order in one update: the critic with the old target and the old actor, the actor with the new critic, the target last.
Metrics: critic_loss (2), critic_mean E[Q(s, a)]; actor_loss (4), actor_weight mean of exp(A / lambda) after the cap;
*_grad_norm the global norm of that gradient.
Differences from the official code: the weights are capped rather than normalised over the batch, as in CORL, and the
value in (3) is one sample.
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_continuous
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak, td_target
from trimtab.policies.gaussian import Gaussian, Mean


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of AWAC."""

    temperature: float = 1.0
    """lambda in (4)."""
    max_weight: float = 100.0
    """w_max in (4)."""
    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 5_000
    """environment steps with uniform random actions before the first update when trained online."""


class AWAC(AbstractAgent):
    """See the module's docstring."""

    actor: Gaussian
    critic: Critic
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "AWAC":
        """A fresh agent. Raises `UsageError` for discrete actions."""
        require_continuous(spec, "awac")
        k_actor, k_critic = jr.split(key)
        nets = dict(
            actor=Gaussian.create(spec, config.hidden, k_actor),
            critic=Critic.create(spec, config.hidden, 2, k_critic),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return Mean(self.actor)

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["AWAC", Metrics]:
        k_next, k_actor = jr.split(key)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y = self._target(batch, k_next)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
        weight = self._weight(critic, batch, k_actor)
        actor, opt_pi, m_pi = descend(
            tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, weight, batch), "actor"
        )
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target=polyak(critic, self.target, self.config.tau),
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        value = self.target(batch.next_obs, self.actor(batch.next_obs, key)).min(0)
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _weight(self, critic: Critic, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (3)
        value = critic(batch.obs, self.actor(batch.obs, key)).min(0)
        advantage = critic(batch.obs, batch.action).min(0) - value
        return jnp.minimum(jnp.exp(advantage / self.config.temperature), self.config.max_weight)

    def _actor_loss(self, actor: Gaussian, weight: Float[Array, " b"], batch: Transition):  # (4)
        return -(weight * actor.log_prob(batch.obs, batch.action)).mean(), {"weight": weight.mean()}
