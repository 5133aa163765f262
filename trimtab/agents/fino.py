"""FINO: flow matching with injected noise, from data to online (Shin et al. 2026, arXiv:2602.18117).

FQL (arXiv:2502.02538) whose flow is taught on noised points, so that it covers more than the data, and which chooses
among several actions by their values, the greedier the more spread out its actions are. x_t = (1 - t) x_0 + t a:

    y     = r + gamma d agg_e Qbar_e(s', a'),  a' = clip(mu(s', z'), -1, 1),  d = discount                 (1)
    L_Q   = E[ (Q_e(s, a) - y)^2 ]                                                                        (2)
    L_BC  = E[ mean_j (v(s, x_t + sigma(t) eps, t) - u)_j^2 ],  eps ~ N(0, I)                             (3)
    L_pi  = alpha E[ mean_j (mu(s, z) - flow(s, z))_j^2 ] - E[ mean_e Q_e(s, clip(mu(s, z), -1, 1)) ]     (4)
    acts  : of M samples a_i of mu, one drawn by softmax_i( xi q_i / c ), q_i = agg_e Q_e(s, a_i)
    xi   <- max(0, xi + rate (H - Hbar)),  online, every `entropy_every` updates, Hbar = -(action size)   (5)

noise          sigma(t)                                    u
"paper"        sqrt((eta^2 - 2 eta) t^2 + 2 eta t)         a - (1 - eta) x_0        the paper's theory
"paper_impl"   eta exp(5 (t - 1))                          a - (1 - eta) x_0        its appendix
"code"         eta exp(10 (t - 1))                         a - x_0                  its official code
"ot"           as "paper"                                  a - (1 - eta) (x - t a) / (1 - (1 - eta) t)    ours
"none"         0                                           a - x_0                  FQL

With "paper", x = x_t + sigma eps is N(t a, (1 - (1 - eta) t)^2 I): the path of optimal transport with a least standard
deviation of eta. Its target still points away from x_0, not from x, so that samples are wider than eta; "ot" points
away from x, and samples of data N(m, s^2) have variance s^2 + eta^2. "code" changes only data narrower than about 0.1.
c by `guide`: "row" mean_i |q_i| of the state (ours), "batch" its mean over all states of the call (the official code),
"plain" 1 (the paper).
H is the mean entropy of a mixture of three Gaussians fitted to `entropy_samples` actions in each state of the batch,
up to log 3 too large (ops/mixture.py).
Evaluated is the sample with the largest q. The target (1) takes one plain sample.
Order in one update: the critic with the old target and the old mu; v; mu with the old v and the new critic; the target
last, from the new critic; then xi.
Metrics: critic_loss (2), critic_mean E[Q(s, a)]; bc_loss (3); actor_loss (4), actor_distance the first mean in (4),
actor_q E[mean_e Q_e] of the second; xi after the update, action_entropy the last H (0 before); *_grad_norm the global
norm of that gradient.
Differences from the official code: with the default `guide` values are divided by the mean of each state's own
candidates, there by that of the whole batch; xi moves every 5,000 updates, there every 50,000, so that it moves at all
in shorter runs; the mixtures are our own; and what the page of FQL says.
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
from trimtab.core import (
    AbstractAgent,
    AbstractPolicy,
    Metrics,
    Spec,
    UsageError,
    require_choice,
    require_continuous,
    require_counts,
)
from trimtab.nets.critic import Critic
from trimtab.ops import AGGREGATES, aggregate, copy, descend, polyak, td_target
from trimtab.ops.mixture import mixture_entropy
from trimtab.policies.compose import GUIDES, Guided
from trimtab.policies.flow import FlowPolicy, OneStep, imitator, student_loss
from trimtab.policies.velocity import AbstractVelocity

NOISES = ("paper", "paper_impl", "code", "ot", "none")

_STATES = 16
"""States whose entropy is measured at once."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FINO."""

    alpha: float = 10.0
    """weight of the distance in (4); grows with the scale of values unless `normalize_q` (cube-double: 300)."""
    normalize_q: bool = False
    """divide the values in (4) by their mean size."""
    noise: str = "paper"
    """how (3) is noised: "paper", "paper_impl", "code", "ot" or "none"; see the table above."""
    eta: float = 0.1
    """size of that noise, in units of the [-1, 1] action."""
    candidates: int | None = None
    """M; None is min(10, (action size + 1) // 2)."""
    guide: str = "row"
    """c: "row" (ours), "batch" (official code) or "plain" (the paper); see above."""
    xi: float = 10.0
    """xi at the start of the online phase."""
    xi_rate: float = 0.1
    """rate in (5)."""
    entropy_every: int = 5_000
    """online, xi changes when the number of all updates, those on data among them, is a multiple of this (paper: 50,000
    of 500,000 online)."""
    entropy_samples: int = 200
    """actions in each state that H is taken over."""
    target_entropy: float | None = None
    """Hbar in (5); None is minus the number of action dimensions."""
    q_agg: str = "mean"
    """agg: "mean" or "min"."""
    flow_steps: int = 10
    """Euler steps of a rollout of v."""
    learning_rate: float = 3e-4
    """Adam's step size for all networks."""
    gamma: float = 0.99
    """discount factor; 0.995 for long tasks."""
    tau: float = 0.005
    """share of the new critic mixed into the target at each update."""
    time_waves: int = 0
    """frequencies, 1/2, 1, 2 .. turns, whose sines and cosines of the flow's time v sees beside it (ours: without them
    a small network blurs narrow data)."""
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
    buffer_size: int = 1_500_000
    """transitions kept for replay, the data set's among them."""
    learning_starts: int = 1
    """online steps before the first online update; the policy itself collects them."""
    phase: str = "online"
    """"offline" or "online"; set by the training loop."""


class FINO(AbstractAgent):
    """See the module's docstring."""

    actor: OneStep
    flow: FlowPolicy
    critic: Critic
    target: Critic
    xi: Float[Array, ""]
    entropy: Float[Array, ""]
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "FINO":
        """A fresh agent. Raises `UsageError` for discrete actions, an unknown `noise`, `guide` or `q_agg`, `eta`
        outside of [0, 1), or a count below 1."""
        require_continuous(spec, "fino")
        require_choice(config, "noise", NOISES)
        require_choice(config, "guide", GUIDES)
        require_choice(config, "q_agg", AGGREGATES)
        if not 0.0 <= config.eta < 1.0:
            raise UsageError(f"eta must be at least 0 and less than 1, got {config.eta}")
        if config.candidates is None:
            config = replace(config, candidates=min(10, (spec.action_size + 1) // 2))
        require_counts(config, "candidates", "entropy_every", "entropy_samples")
        if config.target_entropy is None:
            config = replace(config, target_entropy=-float(spec.action_size))
        k_actor, k_flow, k_critic = jr.split(key, 3)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        shape: dict[str, Any] = dict(activation="gelu", init="glorot", **norm, **inputs)
        nets: dict[str, Any] = dict(
            actor=OneStep.create(spec, config.hidden, k_actor, **inputs),
            flow=imitator(spec, config.hidden, config.flow_steps, k_flow, time_waves=config.time_waves, **inputs),
            critic=Critic.create(spec, config.hidden, config.critic_members, k_critic, **shape),
        )
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        xi, zero = jnp.float32(config.xi), jnp.float32(0.0)
        return cls(**nets, target=copy(nets["critic"]), xi=xi, entropy=zero, opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return self._guided(None)

    @property
    def explorer(self) -> AbstractPolicy:
        return self._guided(self.xi)

    def update(self, batch: Transition, key: PRNGKeyArray) -> tuple["FINO", Metrics]:
        k_flow, k_actor, k_next = jr.split(key, 3)
        tx, opt = optax.adam(self.config.learning_rate), self.opt
        y = self._target(batch, k_next)
        critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
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
        if self.config.phase == "online":
            # Of all updates: a count of the online ones would have a seed axis where seeds train together, and with it
            # the branch would be computed at every update.
            due = new.step % self.config.entropy_every == 0
            xi, entropy = jax.lax.cond(
                due, lambda: new._steer(batch, jr.fold_in(key, 1)), lambda: (self.xi, self.entropy)
            )
            new = replace(new, xi=xi, entropy=entropy)
        return new, m_q | m_v | m_pi | {"xi": new.xi, "action_entropy": new.entropy}

    def _guided(self, xi: Float[Array, ""] | None) -> Guided:
        assert self.config.candidates is not None  # create() filled it in
        return Guided(self.actor, self.critic, xi, self.config.candidates, self.config.q_agg, self.config.guide)

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:  # (1)
        q = self.target(batch.next_obs, self.actor(batch.next_obs, key))
        return td_target(batch.reward, batch.discount, aggregate(q, self.config.q_agg), self.config.gamma)

    def _critic_loss(self, critic: Critic, y: Float[Array, " b"], batch: Transition):  # (2)
        q = critic(batch.obs, batch.action)
        return jnp.square(q - jnp.broadcast_to(y, q.shape)).mean(), {"mean": q.mean()}

    def _bc_loss(self, flow: FlowPolicy, batch: Transition, key: PRNGKeyArray):  # (3)
        loss = noisy_flow_matching_loss(flow.velocity, batch.obs, batch.action, key, self.config.noise, self.config.eta)
        return loss.mean(), {}

    def _actor_loss(self, actor: OneStep, critic: Critic, batch: Transition, start: Array, end: Array):  # (4)
        return student_loss(actor, critic, batch.obs, start, end, self.config.alpha, self.config.normalize_q)

    def _steer(self, batch: Transition, key: PRNGKeyArray) -> tuple[Float[Array, ""], Float[Array, ""]]:  # (5)
        """The next xi, and H."""
        assert self.config.target_entropy is not None  # create() filled it in
        rows, n = jnp.arange(len(batch.reward), dtype=jnp.int32), self.config.entropy_samples

        def one(i: Array) -> Array:
            k_act, k_fit = jr.split(jr.fold_in(key, i))
            obs = jax.tree.map(lambda x: jnp.broadcast_to(x[i][None], (n, *x.shape[1:])), batch.obs)
            return mixture_entropy(self.explorer(obs, k_act), k_fit)

        entropy = jax.lax.map(one, rows, batch_size=_STATES).mean()
        return next_xi(self.xi, entropy, self.config.target_entropy, self.config.xi_rate), entropy


def next_xi(xi: Float[Array, ""], entropy: Float[Array, ""], target_entropy: float, rate: float) -> Float[Array, ""]:
    """(5): a spread above the target makes the choice greedier, one below makes it more even."""
    return jnp.maximum(0.0, xi + rate * (entropy - target_entropy))


def noise_std(noise: str, eta: float, t: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """sigma(t) of the table above."""
    if noise in ("paper", "ot"):
        return jnp.sqrt((eta**2 - 2.0 * eta) * jnp.square(t) + 2.0 * eta * t)
    if noise == "none":
        return jnp.zeros_like(t)
    return eta * jnp.exp((5.0 if noise == "paper_impl" else 10.0) * (t - 1.0))


def noisy_flow_matching_loss(
    velocity: AbstractVelocity, obs: Any, action: Float[Array, "b act"], key: PRNGKeyArray, noise: str, eta: float
) -> Float[Array, "b act"]:
    """(3) elementwise. With `eta` 0 it is `flow_matching_loss` for the same key, bit for bit; with "ot", whose target
    is computed from the point, up to rounding."""
    k_start, k_time = jr.split(key)
    start = jr.normal(k_start, action.shape)
    times = jr.uniform(k_time, action.shape[:1])
    t = jnp.broadcast_to(times[:, None], action.shape)
    point = (1.0 - t) * start + t * action
    point = point + noise_std(noise, eta, t) * jr.normal(jr.fold_in(key, 2), action.shape)
    kept = 1.0 - eta
    if noise == "ot":
        target = action - kept * (point - t * action) / (1.0 - kept * t)
    else:
        target = action - (kept if noise in ("paper", "paper_impl") else 1.0) * start
    return jnp.square(jax.vmap(velocity)(point, times, obs) - target)
