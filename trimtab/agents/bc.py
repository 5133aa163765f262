"""Behaviour cloning: imitate the actions of a data set, whatever they were worth.

    gaussian        L = -E[ log N(a; tanh(mu(s)), sigma^2) ]                                (1)
    deterministic   L = E[ mean_j (tanh(mu(s)) - a)_j^2 ]                                   (2)
    flow            L = E[ mean_j (v(s, x_t, t) - (a - x_0))_j^2 ],  x_t = (1 - t) x_0 + t a    (3)
    polynomial      L = E[ log Z(s) - lambda(s) T(a) ]                                      (4)

j counts the action's dimensions, sigma has one entry for each. (1) is evaluated at its mean and (2) as it is: both
average where the data does two things in one state. (3) draws from what the data does: Euler steps from x_0 ~ N(0, I),
clipped at the end (flow matching: Lipman et al. 2022, arXiv:2210.02747). (4) is the likelihood under a density whose
logarithm is a polynomial of the action (MePoly, arXiv:2602.17832), evaluated where that is greatest. d3rlpy's BC is
(2); the BC of FQL's and OGBench's family is (1) with sigma fixed at 1, whose mean is that of (2).
Order in one update: the policy, which is all there is.
Metrics: actor_loss (1), (2), (3) or (4); actor_error E[mean_j (a_pi - a)_j^2] of the evaluated action, for flow of the
velocity, so that it is the loss; actor_grad_norm the global norm of the gradient.
Differences from those: sigma is learnt, and the mean is kept in (-1, 1) by tanh. There is no critic, and nothing to
learn from acting: data sets only.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractAgent, AbstractPolicy, Metrics, Spec, UsageError, require_continuous
from trimtab.ops import descend
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.flow import FlowPolicy, flow_matching_loss, imitator
from trimtab.policies.gaussian import Gaussian, Mean
from trimtab.policies.polynomial import Family, PolynomialMode, PolynomialPolicy


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of behaviour cloning."""

    policy: str = "gaussian"
    """"gaussian" (1), "deterministic" (2), "flow" (3) or "polynomial" (4)."""
    learning_rate: float = 3e-4
    """Adam's step size."""
    hidden: tuple[int, ...] = (256, 256)
    """widths of the hidden layers; relu, for flow gelu."""
    order: int = 5
    """degree of the polynomial."""
    points: int = 0
    """its quadrature's points a dimension; 0: 3 order + 6."""
    flow_steps: int = 10
    """Euler steps of the flow's rollouts."""
    normalize_obs: bool = False
    """standardise observations over the data set; not for polynomial."""
    batch_size: int = 256
    """transitions in one update."""


class BC(AbstractAgent):
    """See the module's docstring."""

    actor: Gaussian | Deterministic | FlowPolicy | PolynomialPolicy
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "BC":
        """A fresh agent. Raises `UsageError` for discrete actions, an unknown policy or a grid beyond reach."""
        require_continuous(spec, "bc")
        actor: Any
        if config.policy == "gaussian":
            actor = Gaussian.create(spec, config.hidden, key, standardise=config.normalize_obs)
        elif config.policy == "deterministic":
            actor = Deterministic.create(spec, config.hidden, key, standardise=config.normalize_obs)
        elif config.policy == "flow":
            actor = imitator(spec, config.hidden, config.flow_steps, key, standardise=config.normalize_obs)
        elif config.policy == "polynomial":
            family = Family.create(config.order, spec.action_size, config.points)
            actor = PolynomialPolicy.create(spec, family, config.hidden, key)
        else:
            raise UsageError(f"unknown policy {config.policy!r}: choose gaussian, deterministic, flow or polynomial")
        opt = dict(actor=optax.adam(config.learning_rate).init(actor))
        return cls(actor=actor, opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        if isinstance(self.actor, PolynomialPolicy):
            return PolynomialMode(self.actor)
        return Mean(self.actor) if isinstance(self.actor, Gaussian) else self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["BC", Metrics]:
        tx = optax.adam(self.config.learning_rate)
        loss = lambda pi: self._actor_loss(pi, batch, key)
        actor, opt, metrics = descend(tx, self.actor, self.opt["actor"], loss, "actor")
        return replace(self, actor=actor, opt=dict(actor=opt), step=self.step + 1), metrics

    def _actor_loss(
        self, actor: Gaussian | Deterministic | FlowPolicy | PolynomialPolicy, batch: Transition, key: PRNGKeyArray
    ):
        if isinstance(actor, FlowPolicy):  # (3)
            error = flow_matching_loss(actor.velocity, batch.obs, batch.action, key).mean()
            return error, {"error": error}
        if isinstance(actor, PolynomialPolicy):  # (4)
            density = actor.distribution(batch.obs)
            return -density.log_prob(batch.action).mean(), {"error": jnp.square(density.mode() - batch.action).mean()}
        mean = actor.mode(batch.obs) if isinstance(actor, Gaussian) else actor(batch.obs)
        error = jnp.square(mean - batch.action).mean()
        if isinstance(actor, Gaussian):  # (1)
            return -actor.log_prob(batch.obs, batch.action).mean(), {"error": error}
        return error, {"error": error}  # (2)
