"""Flow actor-critic (Chae et al. 2026, arXiv:2602.18015): one flow of the data, for the actor and for the critic.

A flow b (the behaviour proxy) is first fitted to the data and then held. Its samples draw a one-step actor to the data;
its density tells where the critic is to be pessimistic. Velocity v(s, x, t), x_t = (1 - t) z + t a:

    L_b  = E[ mean (v(s, x_t, t) - (a - z))^2 ],  z ~ N(0, I),  t ~ U(0, 1)                  phase "proxy", then frozen
    log b(a | s) = log N(x_0; 0, I) - int div v                              ops/ode.py, `density_steps` back along v

    y    = r + gamma d agg_e Qbar_e(s', clip mu(s', z'))                                     d = discount
    a_p  = clip mu(s, z);  w = clip(1 - b(a_p | s) / eps(s), 0, 1)                           held constant
    L_Q  = E[ (Q_e(s, a) - y)^2 ] + alpha E[ w Q_e(s, a_p) ]
    L_pi = lam E[ (mu(s, z) - clip x_1(s, z))^2 ] - E[ Q ] / E|Q|,  Q = mean_e Q_e(s, clip mu(s, z))

x_1 is where z flows to in `flow_steps` Euler steps, and the divisor E|Q| is held. The threshold eps is b of the row's
own data action ("batch"), or the least b, or a `quantile` of it, over the data set ("dataset"; online over the batch)
or over the batch ("batch-least"). With `density` "vae" b's density is that of a variational auto-encoder, fitted beside
the flow by its ELBO (policies/vae.py), an ablation of the paper; the flow still draws the actor.
For a table the least of L_Q is Q = y - alpha/2 w pi/b: unbiased where w = 0, that is where b >= eps. With "batch" eps
differs from row to row, and an action that is as likely as those of the data has w > 0 in about half of them.
The log densities of the data's actions are computed once, when the proxy is done.

Order in one update: the critic and the actor from the same old networks, then the target from the new critic. Online,
the proxy is fitted on each batch as well, before the rest.
Metrics: critic_loss L_Q, critic_mean E[Q(s, a)], critic_weight E[w], critic_gated share of w > 0, critic_density mean
log b(a_p | s), critic_data_density mean log b(a | s), critic_policy_mean E[Q(s, a_p)] and critic_policy_min the least
of these; actor_loss L_pi, actor_distance the mean that lam weighs, actor_q E[Q]; proxy_loss L_b, with a VAE plus minus
its ELBO; *_grad_norm the global norm of that gradient, with a VAE the sum of both. What a phase does not compute is 0.
Differences from the official code: the proxy sees batches of `batch_size` unless it has a `proxy_batch_size` (there 256
to 4096, by the size of the data) for `proxy_steps` updates (there 250 epochs); densities may be integrated in more
steps, or by Heun's or Runge and Kutta's method, than the 10 Euler steps whose tails are too flat; one Adam a network
instead of one for actor and critics, which is the same.
"""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import Scored, Transition
from trimtab.core import (
    AbstractPolicy,
    AbstractScorer,
    Metrics,
    Spec,
    UsageError,
    require_choice,
    require_continuous,
    require_counts,
)
from trimtab.nets.critic import Critic
from trimtab.ops import AGGREGATES, aggregate, copy, descend, polyak, td_target
from trimtab.ops.ode import METHODS, log_density
from trimtab.policies.flow import FlowPolicy, OneStep, flow_matching_loss, imitator, student_loss
from trimtab.policies.vae import VAE

EDGE = 1.0 - 1e-5
"""Actions of the data are kept this far inside [-1, 1]."""

WEIGHTS = {"linear": 0.0, "logarithmic": 1.0, "convex": 0.5, "concave": 2.0}
"""Form of w -> power T in w = 1 - log(1 + (b/eps)^T) / log 2; "linear" is 1 - b/eps."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FAC. The paper tunes alpha, lam, q_agg and threshold for each family of tasks."""

    alpha: float = 1.0
    """weight of the critic's penalty (paper: 0.05 to 10); 0 leaves FQL's critic."""
    lam: float = 1.0
    """lambda, weight of the distance to the proxy's samples (paper: 3e-4 to 10)."""
    threshold: str = "batch"
    """eps: "batch" (the row's own data action), "dataset" (the least over the data; paper: mazes), or "batch-least"
    (the least over the batch)."""
    quantile: float = 0.0
    """with the other two thresholds, eps is this quantile of their log b, in [0, 1); 0 is the least (paper)."""
    weight: str = "linear"
    """form of w: "linear" (paper), "logarithmic", "convex" or "concave" (its ablation)."""
    q_agg: str = "mean"
    """agg in y: "mean" or "min"."""
    normalize_q: bool = True
    """divide the actor's Q by E|Q|."""
    flow_steps: int = 10
    """Euler steps of the proxy's samples."""
    density: str = "flow"
    """what b's density is: of the proxy's "flow" (paper), or of a "vae" (its ablation)."""
    vae_samples: int = 16
    """samples of the code in the VAE's density (ours)."""
    density_steps: int = 10
    """steps of the density's integral; 10 flatten its tails by a nat at three standard deviations."""
    density_method: str = "euler"
    """"euler" (official code), "heun" or "rk4"."""
    probes: int = 0
    """random directions for the divergence (official code: 8, for many action dimensions); 0: exact."""
    probe_noise: str = "rademacher"
    """what they are drawn from: "rademacher", which varies less, or "gaussian"."""
    proxy_steps: int = 50_000
    """updates of the proxy before the first one of critic and actor; offline-steps do not count them."""
    proxy_batch_size: int | None = None
    """transitions in one of these updates; None is `batch_size`. Official code: 256 below 1e5 rows of data, 1,024 below
    5e5, else 4,096."""
    time_waves: int = 0
    """frequencies, 1/2, 1, 2 .. turns, whose sines and cosines of the flow's time the proxy sees beside it (ours: where
    actions are narrow its velocity changes within the last tenth of the way)."""
    normalize_obs: bool = False
    """standardise observations over the data set; not in the official code."""
    hidden: tuple[int, ...] = (512, 512, 512, 512)
    """widths of the hidden layers of all networks."""
    critic_norm: str | None = "layer_after"
    """LayerNorm in the critics: "layer" before each activation, "layer_after" behind it (official code)."""
    norm_layers: tuple[int, ...] | None = None
    """hidden layers that have it, counted from 0; None is all."""
    critic_members: int = 2
    """number of Q functions."""
    learning_rate: float = 3e-4
    """Adam's step size for all networks."""
    gamma: float = 0.995
    """discount factor (official code, for every task)."""
    tau: float = 0.005
    """share of the new critic mixed into the target."""
    batch_size: int = 256
    """transitions in one update."""
    buffer_size: int = 2_000_000
    """transitions kept for replay, the data set's among them."""
    learning_starts: int = 1
    """online steps before the first online update; the policy itself collects them after offline training."""
    phase: str = "offline"
    """"proxy", "offline" or "online"; set by the training loop."""


class FlowAC(AbstractScorer):
    """See the module's docstring."""

    proxy: FlowPolicy
    actor: OneStep
    critic: Critic
    target: Critic
    opt: dict[str, optax.OptState]
    step: Int[Array, ""]
    config: Config = eqx.field(static=True)
    vae: VAE | None = None

    @classmethod
    def create(cls, key: PRNGKeyArray, spec: Spec, config: Config) -> "FlowAC":
        """A fresh agent. Raises `UsageError` for discrete actions, an unknown choice of a field that names one, a
        `quantile` outside of [0, 1), or a count below 1."""
        require_continuous(spec, "fac")
        own = () if config.proxy_batch_size is None else ("proxy_batch_size",)
        require_counts(config, "proxy_steps", "density_steps", "vae_samples", *own)
        require_choice(config, "threshold", ("batch", "dataset", "batch-least"))
        require_choice(config, "density", ("flow", "vae"))
        require_choice(config, "weight", tuple(WEIGHTS))
        require_choice(config, "q_agg", AGGREGATES)
        require_choice(config, "density_method", METHODS)
        require_choice(config, "probe_noise", ("rademacher", "gaussian"))
        if not 0.0 <= config.quantile < 1.0:
            raise UsageError(f"quantile must be at least 0 and less than 1, got {config.quantile}")
        k_proxy, k_actor, k_critic = jr.split(key, 3)
        norm: dict[str, Any] = dict(norm=config.critic_norm, norm_layers=config.norm_layers)
        inputs: dict[str, Any] = dict(standardise=config.normalize_obs)
        shape: dict[str, Any] = dict(activation="gelu", init="glorot", **norm, **inputs)
        nets: dict[str, Any] = dict(
            proxy=imitator(spec, config.hidden, config.flow_steps, k_proxy, time_waves=config.time_waves, **inputs),
            actor=OneStep.create(spec, config.hidden, k_actor, **inputs),
            critic=Critic.create(spec, config.hidden, config.critic_members, k_critic, **shape),
        )
        if config.density == "vae":
            nets["vae"] = VAE.create(spec, config.hidden, jr.fold_in(k_proxy, 1), **inputs)
        opt = {name: optax.adam(config.learning_rate).init(net) for name, net in nets.items()}
        return cls(**nets, target=copy(nets["critic"]), opt=opt, step=jnp.int32(0), config=config)

    @property
    def policy(self) -> AbstractPolicy:
        return self.actor

    @property
    def explorer(self) -> AbstractPolicy:
        return self.actor

    def update(self, batch: Scored | Transition, key: PRNGKeyArray) -> tuple["FlowAC", Metrics]:
        k_proxy, k_improve, k_score = jr.split(key, 3)
        agent, metrics = self, _nothing("proxy", ())
        if isinstance(batch, Transition):  # phases "proxy" and "online"; the data of phase "offline" are scored
            agent, metrics = self._fit_proxy(batch, k_proxy)
        if self.config.phase == "proxy":
            return replace(agent, step=self.step + 1), metrics | _nothing("critic", CRITIC) | _nothing("actor", ACTOR)
        if isinstance(batch, Transition):
            score = agent.score(batch, k_score)
            batch = Scored(batch, score, agent.least(score))
        agent, more = agent._improve(batch, k_improve)
        return replace(agent, step=self.step + 1), metrics | more

    def score(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:
        """log b(a | s) of the data's actions."""
        return self.log_density(batch.obs, jnp.clip(batch.action, -EDGE, EDGE), key)

    def least(self, scores: Float[Array, " n"]) -> Float[Array, ""]:
        """eps of thresholds "dataset" and "batch-least": the least of the scores, or their `quantile`."""
        return jnp.quantile(scores, self.config.quantile) if self.config.quantile else scores.min()

    def log_density(self, obs: Any, action: Float[Array, "b act"], key: PRNGKeyArray) -> Float[Array, " b"]:
        """log b(a | s) by the proxy's velocity, backwards from `action`, or by the VAE; `key` serves the probes, or its
        samples."""
        if self.vae is not None:
            return self.vae.log_density(obs, action, key, self.config.vae_samples)
        c, field = self.config, lambda x, t: self.proxy.velocity(x, t, obs)
        probes: dict[str, Any] = dict(key=key, probes=c.probes, gaussian=c.probe_noise == "gaussian")
        return log_density(field, action, c.density_steps, method=c.density_method, **(probes if c.probes else {}))

    def _fit_proxy(self, batch: Transition, key: PRNGKeyArray) -> tuple["FlowAC", Metrics]:
        tx, action = optax.adam(self.config.learning_rate), jnp.clip(batch.action, -EDGE, EDGE)
        loss = lambda proxy: (flow_matching_loss(proxy.velocity, batch.obs, action, key).mean(), {})
        proxy, opt, metrics = descend(tx, self.proxy, self.opt["proxy"], loss, "proxy")
        new = replace(self, proxy=proxy, opt=self.opt | dict(proxy=opt))
        if self.vae is None:
            return new, metrics
        less = lambda vae: (-vae.elbo(batch.obs, action, jr.fold_in(key, 1)).mean(), {})
        vae, opt_vae, more = descend(tx, self.vae, self.opt["vae"], less, "proxy")
        both = {name: metrics[name] + more[name] for name in metrics}
        return replace(new, vae=vae, opt=new.opt | dict(vae=opt_vae)), both

    def _improve(self, scored: Scored, key: PRNGKeyArray) -> tuple["FlowAC", Metrics]:
        """Critic and actor, each with the other's old networks."""
        batch = replace(scored.transition, action=jnp.clip(scored.transition.action, -EDGE, EDGE))
        k_next, k_penalty, k_actor = jr.split(key, 3)
        tx, y = optax.adam(self.config.learning_rate), self._target(batch, k_next)
        a_p, w, m_w = self._penalty(batch, scored, k_penalty)
        critic, opt_q, m_q = descend(
            tx, self.critic, self.opt["critic"], lambda q: self._critic_loss(q, y, batch, a_p, w), "critic"
        )
        actor, opt_pi, m_pi = descend(
            tx, self.actor, self.opt["actor"], lambda pi: self._actor_loss(pi, batch, k_actor), "actor"
        )
        target = polyak(critic, self.target, self.config.tau)
        opt = self.opt | dict(critic=opt_q, actor=opt_pi)
        return replace(self, critic=critic, actor=actor, target=target, opt=opt), m_q | m_w | m_pi

    def _target(self, batch: Transition, key: PRNGKeyArray) -> Float[Array, " b"]:
        q = self.target(batch.next_obs, self.actor(batch.next_obs, key))
        return td_target(batch.reward, batch.discount, aggregate(q, self.config.q_agg), self.config.gamma)

    def _penalty(self, batch: Transition, scored: Scored, key: PRNGKeyArray):
        """a_p, w, and what they look like."""
        k_action, k_density = jr.split(key)
        a_p = self.actor(batch.obs, k_action)
        density, data = self.log_density(batch.obs, a_p, k_density), scored.score
        least = self.least(data) if self.config.threshold == "batch-least" else scored.least
        eps = data if self.config.threshold == "batch" else jnp.broadcast_to(least, data.shape)
        w = penalty_weight(density - eps, self.config.weight)
        gated = (w > 0).mean(dtype=jnp.float32)
        found = {"weight": w.mean(), "gated": gated, "density": density.mean(), "data_density": data.mean()}
        return a_p, w, {f"critic_{name}": value for name, value in found.items()}

    def _critic_loss(self, critic: Critic, y: Array, batch: Transition, a_p: Array, w: Array):
        q, q_p = critic(batch.obs, batch.action), critic(batch.obs, a_p)
        penalty = (jnp.broadcast_to(w, q_p.shape) * q_p).mean()
        loss = jnp.square(q - jnp.broadcast_to(y, q.shape)).mean() + self.config.alpha * penalty
        return loss, {"mean": q.mean(), "policy_mean": q_p.mean(), "policy_min": q_p.min()}

    def _actor_loss(self, actor: OneStep, batch: Transition, key: PRNGKeyArray):
        z = jr.normal(key, batch.action.shape)
        end = self.proxy.rollout(batch.obs, z, None)[0].action
        return student_loss(actor, self.critic, batch.obs, z, end, self.config.lam, self.config.normalize_q)


def penalty_weight(log_ratio: Float[Array, " b"], form: str) -> Float[Array, " b"]:
    """w in [0, 1] from log b(a_p | s) - log eps: 0 from a ratio of 1 on, 1 where the ratio is 0."""
    ratio = jnp.exp(jnp.minimum(log_ratio, 0.0))  # beyond 1 the weight is 0 anyway, and exp may overflow
    if form == "linear":
        return 1.0 - ratio
    return jnp.clip(1.0 - jnp.log1p(ratio ** WEIGHTS[form]) / jnp.log(2.0), 0.0, 1.0)


CRITIC = ("mean", "policy_mean", "policy_min", "weight", "gated", "density", "data_density")
ACTOR = ("distance", "q")


def _nothing(name: str, metrics: tuple[str, ...]) -> Metrics:
    """The metrics of a loss that is not computed in this phase."""
    return {f"{name}_{metric}": jnp.zeros(()) for metric in ("loss", "grad_norm", *metrics)}
