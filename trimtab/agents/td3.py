"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, arXiv:1802.09477).

    a'   = clip(pibar(s') + clip(sigma n, -c, c), -1, 1),  n standard normal                (14)
    y    = r + gamma d min_e Qbar_e(s', a')                                                 (10), d = discount
    L_Q  = E[ (Q_e(s, a) - y)^2 ]
    L_pi = -E[ Q_1(s, pi(s)) ],  every `policy_delay`-th update

Order in one update: the critic with the old targets; every `policy_delay`-th update the actor with the new critic and
then both targets. Metrics: critic_loss, critic_mean E[Q(s, a)]; actor_loss, actor_saturation share of |pi(s)| > 0.99,
both NaN in updates that leave the actor alone; *_grad_norm the global norm of that gradient.
Differences from the official code: Adam at 3e-4 with batches of 256 (its second version) and 10,000 random steps.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, require_continuous, require_counts
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak, td_target
from trimtab.policies.compose import Noisy
from trimtab.policies.deterministic import Deterministic


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of TD3."""

    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    policy_delay: int = 2
    """critic updates for each update of the actor and the targets."""
    target_noise: float = 0.2
    """sigma in (14)."""
    target_noise_clip: float = 0.5
    """c in (14)."""
    exploration_noise: float = 0.1
    """standard deviation of the noise on collected actions."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics."""
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


class TD3(AbstractAgent):
    """See the module's docstring."""

    actor: Deterministic
    critic: Critic
    target_actor: Deterministic
    target_critic: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "TD3":
        """A fresh agent. Raises `UsageError` for discrete actions or a policy_delay below 1."""
        require_continuous(spec, "td3")
        require_counts(config, "policy_delay")
        k_actor, k_critic = jr.split(key)
        actor = Deterministic.create(spec, config.hidden, k_actor)
        critic = Critic.create(
            spec, config.hidden, 2, k_critic, norm=config.critic_norm, norm_layers=config.norm_layers
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
        return Noisy.create(self.actor, self.config.exploration_noise)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["TD3", Metrics]:
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y = self._target(batch, key)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")

        def with_actor(_):
            actor, opt_pi, m_pi = descend(
                tx, self.actor, opt["actor"], lambda pi: self._actor_loss(pi, critic, batch), "actor"
            )
            targets = polyak((actor, critic), (self.target_actor, self.target_critic), self.config.tau)
            return (actor, opt_pi, *targets), m_pi

        def without_actor(_):
            skipped = {f"actor_{name}": jnp.full((), jnp.nan) for name in ("loss", "grad_norm", "saturation")}
            return (self.actor, opt["actor"], self.target_actor, self.target_critic), skipped

        due = (self.step + 1) % self.config.policy_delay == 0
        (actor, opt_pi, target_actor, target_critic), m_pi = jax.lax.cond(due, with_actor, without_actor, None)
        new = replace(
            self,
            actor=actor,
            critic=critic,
            target_actor=target_actor,
            target_critic=target_critic,
            opt=dict(actor=opt_pi, critic=opt_q),
            step=self.step + 1,
        )
        return new, m_q | m_pi

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (14), (10)
        action = self.target_actor(batch.next_obs)
        clip = self.config.target_noise_clip
        noise = jnp.clip(self.config.target_noise * jr.normal(key, action.shape), -clip, clip)
        value = self.target_critic(batch.next_obs, jnp.clip(action + noise, -1.0, 1.0)).min(0)
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: Deterministic, critic: Critic, batch: Transition):
        action = actor(batch.obs)
        saturation = (jnp.abs(action) > 0.99).mean(dtype=jnp.float32)
        return -critic(batch.obs, action)[0].mean(), {"saturation": saturation}
