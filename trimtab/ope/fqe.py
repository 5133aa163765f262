"""Fitted Q evaluation (Le, Voloshin and Yue 2019, arXiv:1903.08738) with networks.

    y_e  = r + gamma d Qbar_e(s', a'),  a' ~ pi(s'),  d = discount                  each member has its own target
    L_e  = E[ (Q_e(s, a) - y_e)^2 ] / scale^2
    Q_e  = shift + scale net_e(s, a)
    V    = E_e E_{s_0} E_{a ~ pi} [ Qbar_e(s_0, a) ]

Order in one update: the critic, then its target. It is trained by the loop that trains agents and has their form; it is
no agent to train by name, as its policy is given and never moves.
Metrics: fqe_loss, fqe_mean E[Q(s, a)], fqe_grad_norm.
Differences from the paper: the paper solves one regression after the other; here, as in every deep critic, the target
moves slowly and the regressions overlap. Our design: the falling step size, and `shift` and `scale`, the mean and the
spread of the data's discounted returns, by which values start where the behaviour's are and a network's unit is a
plausible difference of values.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.batches import Recorded, Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec
from trimtab.nets.critic import Critic
from trimtab.ops import copy, descend, polyak
from trimtab.policies.compose import Uniform

SETTLING = 0.4
"""Share of the updates, at their end, in which the step size falls."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of fitted Q evaluation."""

    gamma: float = 0.99
    """discount factor."""
    learning_rate: float = 3e-4
    """Adam's step size. After three fifths of the steps it falls linearly to 0, and with it the noise of the values."""
    steps: int = 20_000
    """updates in all."""
    tau: float = 0.02
    """share of the new critic mixed into the target. Values travel by about tau (1 - gamma) an update."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers."""
    norm: str | None = "layer"
    """LayerNorm before each activation; None for none."""
    members: int = 3
    """critics, each with a target of its own."""
    batch_size: int = 256
    """transitions in one update."""


class FQE(AbstractAgent):
    """See the module's docstring."""

    given: AbstractPolicy
    """the policy that is evaluated."""
    shift: Float[Array, ""]
    scale: Float[Array, ""]
    critic: Critic
    target: Critic
    opt: optax.OptState
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(
        cls,
        key: PRNGKeyArray,
        spec: Spec,
        config: Config,
        *,
        policy: AbstractPolicy | None = None,
        data: Recorded | None = None,
    ) -> "FQE":
        """Fresh critics for `policy` (None: uniform random), with the moments of `spec` and the returns of `data`."""
        critic: Any = Critic.create(spec, config.hidden, config.members, key, norm=config.norm, standardise=True)
        shift, scale = (0.0, 1.0) if data is None else spread_of_returns(data, config.gamma)
        return cls(
            # A copy: training gives its own arrays away.
            given=copy(Uniform.create(spec) if policy is None else policy),
            shift=jnp.float32(shift),
            scale=jnp.float32(scale),
            critic=critic,
            target=copy(critic),
            opt=_adam(config).init(critic),
            step=jnp.int32(0),
            config=config,
        )

    @property
    def policy(self) -> AbstractPolicy:
        return self.given

    @property
    def explorer(self) -> AbstractPolicy:
        return self.given

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["FQE", Metrics]:
        tx, y = _adam(self.config), self._target(batch, key)
        critic, opt, metrics = descend(tx, self.critic, self.opt, lambda q: self._loss(q, y, batch), "fqe")
        target = polyak(critic, self.target, self.config.tau)
        return replace(self, critic=critic, target=target, opt=opt, step=self.step + 1), metrics

    def q(self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"]) -> Float[Array, "e b"]:
        """Qbar of each member: the slow target is the average of the critics of the last 1/tau updates."""
        return self._values(self.target, obs, action)

    def v(self, obs: PyTree[Float[Array, "b ..."]], key: PRNGKeyArray, samples: int) -> Float[Array, "e b"]:
        """The mean of Qbar over `samples` actions of the policy."""
        return jnp.stack([self.q(obs, self.given(obs, k)) for k in jr.split(key, samples)]).mean(0)

    def _values(self, critic: Critic, obs: PyTree[Float[Array, "b ..."]], action: Array) -> Float[Array, "e b"]:
        return self.shift + self.scale * critic(obs, action)

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, "e b"]:
        q = self._values(self.target, batch.next_obs, self.given(batch.next_obs, key))
        reward, discount = (jnp.broadcast_to(x, q.shape) for x in (batch.reward, batch.discount))
        return reward + self.config.gamma * discount * q

    def _loss(self, critic: Critic, y: Float[Array, "e b"], batch: Transition):
        q = self._values(critic, batch.obs, batch.action)
        return jnp.square((q - y) / self.scale).mean(), {"mean": q.mean()}


def _adam(config: Config) -> optax.GradientTransformation:
    falls = round(SETTLING * config.steps)
    return optax.adam(optax.linear_schedule(config.learning_rate, 0.0, max(falls, 1), config.steps - falls))


def spread_of_returns(data: Recorded, gamma: float) -> tuple[float, float]:
    """Mean and standard deviation of the data's discounted rewards to go, whose sums stop at the end of an episode.

    Where all are the same, the second is that number's size, or 1.
    """
    reward, last = np.asarray(data.transition.reward, np.float64), np.asarray(data.ended)
    to_go, after = np.empty_like(reward), 0.0
    for i in range(len(reward) - 1, -1, -1):
        after = reward[i] + (0.0 if last[i] else gamma * after)
        to_go[i] = after
    mean, std = float(to_go.mean()), float(to_go.std())
    return mean, std if std > 1e-6 * max(abs(mean), 1.0) else abs(mean) or 1.0
