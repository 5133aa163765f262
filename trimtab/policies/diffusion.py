"""Diffusion policies: an action is what is left when a network takes the noise out of a normal draw, step by step.

    beta_t from 1e-4 * 1000/T to 0.02 * 1000/T, evenly;  ab_t = prod_{u <= t} (1 - beta_u),  ab_0 = 1,  t = 1 .. T
    x_t  = sqrt(ab_t) a + sqrt(1 - ab_t) eps                                               what is learnt from       (1)
    a0   = clip((x_t - sqrt(1 - ab_t) eps_net(s, x_t, t)) / sqrt(ab_t), -1, 1)             one step                  (2)
    x_{t-1} = [sqrt(ab_{t-1}) beta_t a0 + sqrt(1 - beta_t) (1 - ab_{t-1}) x_t] / (1 - ab_t) + s_t z,
              s_t^2 = beta_t (1 - ab_{t-1}) / (1 - ab_t)                                   DDPM                      (3)
    x_r  = sqrt(ab_r) a0 + sqrt(1 - ab_r) e,  e = (x_t - sqrt(ab_t) a0) / sqrt(1 - ab_t)   DDIM, from t to r < t     (4)

DDPM (Ho et al. 2020, arXiv:2006.11239) goes through all T steps with the posterior's variance; DDIM (Song et al. 2021,
arXiv:2010.02502) without noise through some of them. The schedule is SEEM's (arXiv:2310.04411), so T is 21 or more.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from trimtab.core import AbstractPolicy, Spec, UsageError
from trimtab.nets.mlp import MLP, concat
from trimtab.nets.time import StepTime

Denoiser = Callable[[Array, Array], Array]
"""(x_t, t - 1) -> the noise in x_t."""


def schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """beta_1 .. beta_T and ab_1 .. ab_T, in float64. Raises `UsageError` where beta_T would not be below 1."""
    if steps < 21:
        raise UsageError(f"diffusion_steps must be at least 21, got {steps}: the last step's noise is 20 / steps")
    betas = np.linspace(1e-4, 0.02, steps) * 1000.0 / steps
    return betas, np.cumprod(1.0 - betas)


def _column(values: np.ndarray, i: Int[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(values, jnp.float32)[i]


def denoised(
    x: Float[Array, "*b act"], noise: Float[Array, "*b act"], kept: Float[Array, "*b act"]
) -> Float[Array, "*b act"]:
    """(2), with `kept` ab_t for each entry."""
    return jnp.clip((x - jnp.sqrt(1.0 - kept) * noise) / jnp.sqrt(kept), -1.0, 1.0)


def ddpm(denoise: Denoiser, start: Float[Array, "*b act"], noise: Float[Array, "t *b act"]) -> Float[Array, "*b act"]:
    """(3) from x_T = `start` to a; `noise` is z at t = 1 .. T, of which the first has weight 0."""
    steps = noise.shape[0]
    betas, kept = schedule(steps)
    before = np.append(1.0, kept[:-1])
    to_action, to_x = np.sqrt(before) * betas / (1.0 - kept), np.sqrt(1.0 - betas) * (1.0 - before) / (1.0 - kept)
    std = np.sqrt(betas * (1.0 - before) / (1.0 - kept))

    def body(x: Array, step: tuple[Array, Array]) -> tuple[Array, None]:
        i, z = step
        a0 = denoised(x, denoise(x, i), jnp.full_like(x, _column(kept, i)))
        return _column(to_action, i) * a0 + _column(to_x, i) * x + _column(std, i) * z, None

    return jax.lax.scan(body, start, (jnp.arange(steps, dtype=jnp.int32)[::-1], noise[::-1]))[0]


def ddim(denoise: Denoiser, start: Float[Array, "*b act"], steps: int, calls: int) -> Float[Array, "*b act"]:
    """(4) from x_T = `start` to a, by `calls` of the T = `steps` steps: evenly spaced, the first and last included."""
    _, kept = schedule(steps)
    times = np.unique(np.linspace(0, steps - 1, calls).round().astype(np.int32)) if calls > 1 else np.array([steps - 1])
    here = np.asarray(kept[times])
    after = np.append(1.0, here[:-1])

    def body(x: Array, step: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, now, then = step
        kept_now = jnp.full_like(x, now)
        a0 = denoised(x, denoise(x, i), kept_now)
        left = (x - jnp.sqrt(kept_now) * a0) / jnp.sqrt(1.0 - kept_now)
        return jnp.sqrt(then) * a0 + jnp.sqrt(1.0 - then) * left, None

    backwards = lambda values, kind: jnp.asarray(np.ascontiguousarray(values[::-1]), kind)
    steps_down = (backwards(times, jnp.int32), backwards(here, jnp.float32), backwards(after, jnp.float32))
    return jax.lax.scan(body, start, steps_down)[0]


class NoiseNet(eqx.Module):
    """eps_net(s, x, t) = MLP([s, x, embedding of t - 1])."""

    net: MLP
    time: StepTime

    @classmethod
    def create(cls, spec: Spec, hidden: tuple[int, ...], key: PRNGKeyArray, *, activation: str = "mish") -> "NoiseNet":
        """A network of widths `hidden`."""
        k_net, k_time = jr.split(key)
        act = spec.action_size
        return cls(
            MLP.create(spec.obs_size + act + 16, hidden, act, k_net, activation=activation), StepTime.create(k_time)
        )

    def __call__(
        self, obs: Float[Array, "*b obs"], x: Float[Array, "*b act"], embedding: Float[Array, "*b 16"]
    ) -> Float[Array, "*b act"]:
        return self.net(concat(obs, x, embedding))


class Diffusion(AbstractPolicy):
    """Acts by DDPM or DDIM from a normal draw; the action is in [-1, 1] by (2)."""

    noise: NoiseNet
    steps: int = eqx.field(static=True)
    """T."""
    calls: int | None = eqx.field(static=True)
    """DDIM's calls of the network; None is DDPM."""

    @classmethod
    def create(
        cls, spec: Spec, hidden: tuple[int, ...], key: PRNGKeyArray, *, steps: int = 100, calls: int | None = None
    ) -> "Diffusion":
        """A network of widths `hidden`. Raises `UsageError` unless steps >= 21 and 1 <= calls <= steps."""
        schedule(steps)
        if calls is not None and not 1 <= calls <= steps:
            raise UsageError(f"DDIM's steps must be from 1 to {steps}, got {calls}")
        return cls(NoiseNet.create(spec, hidden, key), steps, calls)

    def __call__(self, obs: PyTree[Float[Array, "..."]], key: PRNGKeyArray) -> Array:
        flat, k_start, k_noise = concat(obs), *jr.split(key)
        shape = (*flat.shape[:-1], self.noise.net.layers[-1].bias.shape[-1])
        times = self.noise.time(jnp.arange(self.steps, dtype=jnp.float32))

        def denoise(x: Array, i: Array) -> Array:
            return self.noise(flat, x, jnp.broadcast_to(times[i], (*x.shape[:-1], times.shape[-1])))

        start = jr.normal(k_start, shape)
        if self.calls is not None:
            return ddim(denoise, start, self.steps, self.calls)
        return ddpm(denoise, start, jr.normal(k_noise, (self.steps, *shape)))

    def one_step(
        self, obs: PyTree[Float[Array, "b ..."]], action: Float[Array, "b act"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "b act"], Float[Array, "b act"]]:
        """`(eps_net - eps)^2` elementwise at a random t a row (1), and the action that one step finds there (2)."""
        k_time, k_noise = jr.split(key)
        t = jr.randint(k_time, action.shape[:1], 0, self.steps)
        kept = jnp.asarray(schedule(self.steps)[1], jnp.float32)[t]
        kept = jnp.broadcast_to(kept[:, None], action.shape)
        noise = jr.normal(k_noise, action.shape)
        x = jnp.sqrt(kept) * action + jnp.sqrt(1.0 - kept) * noise
        found = self.noise(concat(obs), x, self.noise.time(t.astype(jnp.float32)))
        return jnp.square(found - noise), denoised(x, found, kept)
