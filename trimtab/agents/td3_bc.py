"""TD3 with behaviour cloning, a minimalist offline method (Fujimoto and Gu 2021, arXiv:2106.06860).

    a'   = clip(pibar(s') + clip(sigma n, -c, c), -1, 1),  n standard normal
    y    = r + gamma d min_e Qbar_e(s', a'),  d = discount, 0 if terminated
    L_Q  = E[ (Q_e(s, a) - y)^2 ]
    L_pi = E[ -alpha Q_1(s, pi(s)) / E|Q_1(s, pi(s))| + mean_j (pi(s) - a)_j^2 ],  every `policy_delay`-th update   (5)

The divisor in (5) is held constant; j counts the action's dimensions. States are standardised over the data set:
(s - mean) / (std + 1e-3), inside of actor and critics, so that exported policies and online phases need no more.
Order in one update: the critic with the old targets; every `policy_delay`-th update the actor with the new critic and
then both targets. Metrics: critic_loss, critic_mean E[Q(s, a)]; actor_loss (5), actor_error the second mean in (5),
actor_q E[Q_1(s, pi(s))], the three and actor_grad_norm NaN in updates that leave the actor alone; *_grad_norm the
global norm of that gradient.
Differences from the official code: the critics' loss is a mean over the two instead of their sum.
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
from trimtab.ops import copy, descend, polyak, td_target, unit_scale
from trimtab.policies.compose import Noisy
from trimtab.policies.deterministic import Deterministic


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of TD3+BC."""

    alpha: float = 2.5
    """weight of the values in (5); 0 clones the data."""
    normalize_obs: bool = True
    """standardise observations over the data set."""
    learning_rate: float = 3e-4
    """Adam's step size for critic and actor."""
    gamma: float = 0.99
    """discount factor."""
    tau: float = 0.005
    """share of the new networks mixed into the targets."""
    policy_delay: int = 2
    """critic updates for each update of the actor and the targets."""
    target_noise: float = 0.2
    """sigma."""
    target_noise_clip: float = 0.5
    """c."""
    exploration_noise: float = 0.1
    """standard deviation of the noise on actions collected online."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers of actor and critics."""
    critic_norm: str | None = None
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 1_000_000
    """transitions kept for replay when trained online."""
    learning_starts: int = 10_000
    """environment steps with uniform random actions before the first update when trained online without data."""


class TD3BC(AbstractAgent):
    """See the module's docstring."""

    actor: Deterministic
    critic: Critic
    target_actor: Deterministic
    target_critic: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "TD3BC":
        """A fresh agent. Raises `UsageError` for discrete actions or a policy_delay below 1."""
        require_continuous(spec, "td3-bc")
        require_counts(config, "policy_delay")
        k_actor, k_critic = jr.split(key)
        actor = Deterministic.create(spec, config.hidden, k_actor, standardise=config.normalize_obs)
        critic = Critic.create(
            spec,
            config.hidden,
            2,
            k_critic,
            norm=config.critic_norm,
            norm_layers=config.norm_layers,
            standardise=config.normalize_obs,
        )
        nets: dict[str, Any] = dict(actor=actor, critic=critic)
        return cls(
            **nets,
            target_actor=copy(actor),
            target_critic=copy(critic),
            opt={name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()},
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return Noisy.create(self.actor, self.config.exploration_noise)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["TD3BC", Metrics]:
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
            skipped = {f"actor_{name}": jnp.full((), jnp.nan) for name in ("loss", "grad_norm", "error", "q")}
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

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:
        action = self.target_actor(batch.next_obs)
        clip = self.config.target_noise_clip
        noise = jnp.clip(self.config.target_noise * jr.normal(key, action.shape), -clip, clip)
        value = self.target_critic(batch.next_obs, jnp.clip(action + noise, -1.0, 1.0)).min(0)
        return td_target(batch.reward, batch.discount, value, self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _actor_loss(self, actor: Deterministic, critic: Critic, batch: Transition):  # (5)
        action = actor(batch.obs)
        q = critic(batch.obs, action)[0]
        error = jnp.square(action - batch.action).mean()
        return error - self.config.alpha * unit_scale(q).mean(), {"error": error, "q": q.mean()}
