"""Flow policies: an action is the end of K Euler steps through a velocity network, squashed by tanh or clipped.

    x_0 ~ N(0, I),  t_i = i/K,  dt = 1/K,  a = tanh(x_K), or clip(x_K, -1, 1) with `clipped`
    x_{i+1} = x_i + v(t_i, x_i, s) dt                                          the ODE: what is evaluated
    x_{i+1} = x_i + v dt + sigma_i e_i                                         `LearnedStd`, e_i ~ N(0, I)
    x_{i+1} = x_i + b dt + sigma sqrt(dt) e_i                                  `ConstStd`
      b = v + sigma^2/2 * score,  score = (t v - x)/(1 - t)                    drift-corrected; else b = v
    log p(path | s) = log N(x_0; 0, I) + sum_i log N(x_{i+1}; mean_i, std_i^2) - sum_j log(scale_j (1 - a_j^2))

`log p` is the density of the whole path x_0 .. x_K, of the action in the environment's units (scale: half the width of
its bounds); it is an upper-level object and not the density of the action, which a flow does not know. The drift
correction keeps the marginals of the ODE for a rectified flow from N(0, I), whatever sigma (SAC Flow,
arXiv:2509.25756). With `clipped`, actions are the flow's own values (FQL, arXiv:2502.02538) and the density is that of
the path before it is clipped.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Metrics, Spec, UsageError
from trimtab.nets.critic import Critic
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.standardise import Standardise, flatten
from trimtab.ops import standard_log_prob, tanh_log_det, unit_scale
from trimtab.policies.velocity import AbstractVelocity
from trimtab.policies.velocity import DecoderVelocity as DecoderVelocity
from trimtab.policies.velocity import GatedVelocity as GatedVelocity
from trimtab.policies.velocity import MLPVelocity as MLPVelocity


class LearnedStd(eqx.Module):
    """sigma_i = exp(low + (high - low)/2 (tanh(f) + 1)), f the velocity's head for it. At f = 0: exp((low + high)/2).

    `on_velocity` noises the velocity instead of the state: the step's std is then sigma dt.
    `official_logp` leaves log(sigma dt) out of the density, as the official Flow-T does: its entropy then does not
    depend on sigma. For comparisons only; it implies `on_velocity`.
    """

    low: float = eqx.field(static=True, default=-5.0)
    high: float = eqx.field(static=True, default=2.0)
    on_velocity: bool = eqx.field(static=True, default=False)
    official_logp: bool = eqx.field(static=True, default=False)


class ConstStd(eqx.Module):
    """The same sigma at every step and state; each step's std is sigma sqrt(dt)."""

    std: float = eqx.field(static=True)
    drift_corrected: bool = eqx.field(static=True, default=True)


class Rollout(eqx.Module):
    """One rollout for each row of a batch."""

    action: Float[Array, "*b act"]
    """tanh(x_K) or x_K clipped, in [-1, 1]."""
    log_prob: Float[Array, "*b"]
    """log p(path | s); of a rollout without noise, its x_0 and tanh terms alone."""
    path: tuple[Float[Array, "*b act"], ...]
    """x_0 .. x_K, before tanh."""
    log_std: Float[Array, ""]
    """mean log std of the steps' noise; -inf without noise."""


class FlowPolicy(AbstractPolicy):
    """A velocity network, how its rollout is noised, and how many steps it takes.

    Called as a policy it acts by a rollout with its noise; `Ode` acts without. `steps` may be changed after training.
    """

    velocity: AbstractVelocity
    noise: LearnedStd | ConstStd | None
    """None: always the ODE."""
    steps: int = eqx.field(static=True)
    log_volume: float = eqx.field(static=True)
    """log of the product of the scales of all action dimensions."""
    clipped: bool = eqx.field(static=True, default=False)
    """whether the end of a rollout is clipped to [-1, 1] instead of squashed by tanh."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        velocity: AbstractVelocity,
        noise: LearnedStd | ConstStd | None,
        steps: int,
        *,
        clipped: bool = False,
    ) -> "FlowPolicy":
        """`velocity` acts in `spec`, once or for several actions in a row (a chunk). Raises `UsageError` if
        steps < 1 or if `ConstStd` has no positive std."""
        if steps < 1:
            raise UsageError(f"flow_steps must be at least 1, got {steps}")
        if isinstance(noise, ConstStd) and not noise.std > 0:
            raise UsageError(f"the noise of a flow's steps must be positive, got {noise.std}")
        widths = zip(spec.action_low, spec.action_high, strict=True)
        log_volume = sum(math.log((high - low) / 2) for low, high in widths)
        return cls(velocity, noise, steps, log_volume * (velocity.action_size // spec.action_size), clipped)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        return self.sample(obs, key).action

    def sample(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Rollout:
        """A rollout with the policy's noise, outside of training."""
        return self.rollout(obs, *self.draw(obs, key))[0]

    def sample_train(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> "tuple[Rollout, FlowPolicy]":
        """A rollout with noise and batch statistics, and the policy with new running ones."""
        return self.rollout(obs, *self.draw(obs, key), train=True)

    def draw(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> tuple[Array, Array | None]:
        """x_0 of shape (..., act) and the noise e of shape (K, ..., act), both standard normal; no e without noise."""
        shape = (*jax.tree.leaves(obs)[0].shape[:-1], self.velocity.action_size)
        # The barrier keeps XLA from drawing the same numbers again wherever they are used.
        if self.noise is None:
            return jax.lax.optimization_barrier(jr.normal(key, shape)), None
        noise = jax.lax.optimization_barrier(jr.normal(key, (self.steps + 1, *shape)))
        return noise[0], noise[1:]

    def rollout(
        self,
        obs: PyTree[Float[Array, "..."]],
        start: Float[Array, "*b act"],
        noise: Float[Array, "k *b act"] | None,
        *,
        train: bool = False,
        nudges: Float[Array, "k *b act"] | None = None,
        calls: Sequence[AbstractVelocity] | None = None,
    ) -> "tuple[Rollout, FlowPolicy]":
        """K steps from `start`, with the given noise or along the ODE (None).

        For diagnostics: `nudges` are added to x_i before step i, `calls` are the networks of the K calls.
        """
        velocity, x, dt = self.velocity, start, 1.0 / self.steps
        times = jnp.arange(self.steps, dtype=jnp.float32) * dt
        memory = velocity.encode(obs, times)
        path, log_stds = [x], []
        log_prob = standard_log_prob(start, jnp.zeros_like(start))
        for i in range(self.steps):
            if nudges is not None:
                x = x + nudges[i]
            if calls is not None:
                velocity, memory = calls[i], calls[i].encode(obs, times)
            v, raw, velocity = velocity.forward(x, i, memory, train)
            if noise is None:
                x = x + dt * v
            else:
                mean, log_std, official = self._step(x, v, raw, i * dt, dt)
                x = mean + jnp.exp(log_std) * noise[i]
                log_prob = log_prob + standard_log_prob(noise[i], jnp.zeros_like(log_std) if official else log_std)
                log_stds.append(log_std.mean())
            path.append(x)
        log_std = jnp.stack(log_stds).mean() if log_stds else jnp.float32(-jnp.inf)
        log_prob = log_prob - (jnp.zeros_like(log_prob) if self.clipped else tanh_log_det(x)) - self.log_volume
        action = jnp.clip(x, -1.0, 1.0) if self.clipped else jnp.tanh(x)
        trained = replace(self, velocity=velocity if calls is None else self.velocity)
        return Rollout(action, log_prob, tuple(path), log_std), trained

    def _step(self, x: Array, v: Array, raw: Array | None, t: float, dt: float) -> tuple[Array, Array, bool]:
        """Mean and log std of the next state, and whether the density leaves the log std out."""
        if isinstance(self.noise, ConstStd):
            sigma = self.noise.std
            drift = corrected_drift(v, x, t, sigma) if self.noise.drift_corrected else v
            return x + dt * drift, jnp.full_like(x, math.log(sigma * math.sqrt(dt))), False
        assert self.noise is not None and raw is not None, "LearnedStd needs a velocity with a std head"
        low, high, official = self.noise.low, self.noise.high, self.noise.official_logp
        log_std = low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0)
        return x + dt * v, log_std + math.log(dt) if self.noise.on_velocity or official else log_std, official


def imitator(
    spec: Spec,
    hidden: tuple[int, ...],
    steps: int,
    key: PRNGKeyArray,
    *,
    standardise: bool = False,
    time_waves: int = 0,
) -> FlowPolicy:
    """The flow that FQL's family fits to data: a plain velocity network of widths `hidden`, without noise.
    `standardise` puts the data set's `Standardise` before its observations; it sees t at `time_waves` frequencies."""
    shape: dict[str, Any] = dict(std_head=False, input_norm=False, activation="gelu", init="glorot")
    shape |= dict(standardise=standardise, time_waves=time_waves)
    return FlowPolicy.create(spec, MLPVelocity.create(spec, key, hidden=hidden, **shape), None, steps, clipped=True)


class OneStep(AbstractPolicy):
    """a = clip(mu(s, z), -1, 1), z ~ N(0, I): a flow's rollout distilled into one network (FQL)."""

    net: MLP
    inputs: Standardise | None = None
    """what observations pass through first."""

    @classmethod
    def create(
        cls,
        spec: Spec,
        hidden: tuple[int, ...],
        key: PRNGKeyArray,
        *,
        activation: str = "gelu",
        init: str = "glorot",
        standardise: bool = False,
    ) -> "OneStep":
        """A network of widths `hidden` on [s, z]; `standardise` puts the data set's `Standardise` before s."""
        act = spec.action_size
        net = MLP.create(spec.obs_size + act, hidden, act, key, activation=activation, init=init)
        return cls(net, Standardise.create(spec) if standardise else None)

    def mu(self, obs: PyTree[Float[Array, "..."]], start: Float[Array, "*b act"]) -> Float[Array, "*b act"]:
        """The network's output, before it is clipped."""
        return self.net(concat(flatten(obs, self.inputs), start))

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        lead = jax.tree.leaves(obs)[0].shape[:-1]
        start = jr.normal(key, (*lead, self.net.layers[-1].bias.shape[-1]))
        return jnp.clip(self.mu(obs, start), -1.0, 1.0)


def student_loss(
    actor: OneStep,
    critic: Critic,
    obs: PyTree[Float[Array, "b ..."]],
    start: Float[Array, "b act"],
    end: Float[Array, "b act"],
    weight: float,
    normalize: bool,
) -> tuple[Float[Array, ""], Metrics]:
    """How FQL's family improves `actor`: it is drawn to `end`, where the flow takes `start`, and to value.

        weight E[ mean_j (mu(s, start) - end)_j^2 ] - E[ q ],  q = mean_e Q_e(s, clip(mu(s, start), -1, 1))

    With `normalize` q is divided by E|q|, held constant. The metrics are the first mean, and E[q] before that division.
    """
    mu = actor.mu(obs, start)
    distance = jnp.square(mu - end).mean()
    q = critic(obs, jnp.clip(mu, -1.0, 1.0)).mean(0)
    value = unit_scale(q).mean() if normalize else q.mean()
    return weight * distance - value, {"distance": distance, "q": q.mean()}


class Ode(AbstractPolicy):
    """A flow policy without noise on its steps: x_0 is drawn, the rest follows. What is evaluated and exported."""

    inner: FlowPolicy

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        start, _ = self.inner.draw(obs, key)
        return self.from_start(obs, start)

    def from_start(self, obs: PyTree[Float[Array, "..."]], start: Float[Array, "*b act"]) -> Array:
        """The action to which `start` flows."""
        return self.inner.rollout(obs, start, None)[0].action


def with_steps(agent: Any, steps: int) -> Any:
    """`agent` (any PyTree) whose flow policies take `steps` Euler steps. Raises `UsageError` if it has none."""
    if steps < 1:
        raise UsageError(f"flow_steps must be at least 1, got {steps}")
    is_flow = lambda x: isinstance(x, FlowPolicy)
    if not any(map(is_flow, jax.tree.leaves(agent, is_leaf=is_flow))):
        raise UsageError("flow_steps is for flow policies, and this agent has none")
    return jax.tree.map(lambda x: replace(x, steps=steps) if is_flow(x) else x, agent, is_leaf=is_flow)


def corrected_drift(v: Array, x: Array, t: float | Array, sigma: float) -> Array:
    """`v + sigma^2/2 (t v - x)/(1 - t)`: the drift whose SDE with noise sigma has the marginals of dx = v dt.

    For a rectified flow from N(0, I), whose score is (t v - x)/(1 - t); `t` below 1.
    """
    return v + (0.5 * sigma**2 / (1.0 - t)) * (t * v - x)


def flow_matching_loss(
    velocity: AbstractVelocity, obs: Any, action: Float[Array, "b act"], key: PRNGKeyArray
) -> Float[Array, "b act"]:
    """`(v(s, x_t, t) - (a - x_0))^2` elementwise, x_t = (1 - t) x_0 + t a, one t ~ U(0, 1) and x_0 ~ N(0, I) a row."""
    k_start, k_time = jr.split(key)
    start = jr.normal(k_start, action.shape)
    times = jr.uniform(k_time, action.shape[:1])
    t = jnp.broadcast_to(times[:, None], action.shape)
    return jnp.square(jax.vmap(velocity)((1.0 - t) * start + t * action, times, obs) - (action - start))
