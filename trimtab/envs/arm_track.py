"""Arm-track: a two-link arm in gravity follows a periodic motion under sensor noise and random pushes.

The controller's targets are the reference's next angles plus the action (in radians), so that doing nothing is tracking
open loop. The task shows what high-frequency actions are made of: gains on noisy sensors.

    tau = clip(KP (u - q) - KD q', +-TMAX) + push,  q'' = M(q)^-1 (tau - C - G - damping q'),  u = q_ref(t + dt) + a
    reward = 0.7 exp(-10 |q - q_ref|^2) + 0.3 exp(-0.1 |q' - q'_ref|^2);  ends where |q - q_ref|^2 > 1
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step

RATE, SUBSTEPS, PERIOD = 60.0, 4, 2.0
MASS, LENGTH, CENTRE, GRAVITY = 1.0, 0.5, 0.25, 9.81
INERTIA = MASS * LENGTH**2 / 12.0
KP, KD, TMAX = (60.0, 30.0), (3.0, 1.5), (40.0, 20.0)
PUSH, PUSH_SHARE = (3.0, 1.5), 0.1
SCALE = (1.0, 1.0, 0.2, 0.2)
NOISE = (0.02, 0.02, 0.2, 0.2)


def reference(t: Float[Array, ""]) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """Angles and their rates at time `t`."""
    w = 2.0 * jnp.pi / PERIOD
    angles = jnp.stack([0.6 * jnp.sin(w * t), -0.8 + 0.6 * jnp.cos(2.0 * w * t)])
    return angles, jnp.stack([0.6 * w * jnp.cos(w * t), -1.2 * w * jnp.sin(2.0 * w * t)])


def acceleration(
    q: Float[Array, "2"], rate: Float[Array, "2"], torque: Float[Array, "2"], damping: float = 0.05
) -> Float[Array, "2"]:
    """Of both joints."""
    cos2, sin2 = jnp.cos(q[1]), jnp.sin(q[1])
    m12 = INERTIA + MASS * (CENTRE**2 + LENGTH * CENTRE * cos2)
    m11 = 2.0 * INERTIA + MASS * CENTRE**2 + MASS * (LENGTH**2 + CENTRE**2 + 2.0 * LENGTH * CENTRE * cos2)
    m22 = INERTIA + MASS * CENTRE**2
    h = -MASS * LENGTH * CENTRE * sin2
    coriolis = jnp.stack([h * (2.0 * rate[0] * rate[1] + rate[1] ** 2), -h * rate[0] ** 2])
    tip = MASS * CENTRE * GRAVITY * jnp.sin(q[0] + q[1])
    weight = jnp.stack([MASS * (CENTRE + LENGTH) * GRAVITY * jnp.sin(q[0]) + tip, tip])
    f = torque - coriolis - weight - damping * rate
    return jnp.stack([m22 * f[0] - m12 * f[1], m11 * f[1] - m12 * f[0]]) / (m11 * m22 - m12**2)


def energy(q: Float[Array, "2"], rate: Float[Array, "2"]) -> Float[Array, ""]:
    """Kinetic and potential."""
    cos2 = jnp.cos(q[1])
    m12 = INERTIA + MASS * (CENTRE**2 + LENGTH * CENTRE * cos2)
    m11 = 2.0 * INERTIA + MASS * CENTRE**2 + MASS * (LENGTH**2 + CENTRE**2 + 2.0 * LENGTH * CENTRE * cos2)
    m22 = INERTIA + MASS * CENTRE**2
    kinetic = 0.5 * (m11 * rate[0] ** 2 + 2.0 * m12 * rate[0] * rate[1] + m22 * rate[1] ** 2)
    height = -(CENTRE + LENGTH) * jnp.cos(q[0]) - CENTRE * jnp.cos(q[0] + q[1])
    return kinetic + MASS * GRAVITY * height


class ArmTrack(AbstractEnv):
    """The parts of an observation are `phase` (sine and cosine) and `state` (noisy angles and rates, scaled).

    `noise` multiplies the sensors' noise, `push` the pushes.
    """

    noise: Float[Array, ""]
    push: Float[Array, ""]
    spec: ClassVar[Spec] = Spec(
        {"phase": jax.ShapeDtypeStruct((2,), jnp.float32), "state": jax.ShapeDtypeStruct((4,), jnp.float32)},
        2,
        False,
        (-1.0, -1.0),
        (1.0, 1.0),
    )
    max_steps: ClassVar[int] = 120

    @classmethod
    def create(cls, noise: float = 1.0, push: float = 1.0) -> "ArmTrack":
        """The task as it is defined, with as much noise and as strong pushes as that says."""
        return cls(jnp.float32(noise), jnp.float32(push))

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        k_time, k_state, k_obs = jr.split(key, 3)
        t = PERIOD * jr.uniform(k_time)
        q, rate = reference(t)
        noise = 0.05 * jr.normal(k_state, (2, 2))
        state = (t, q + noise[0], rate + noise[1])
        return state, self._obs(state, k_obs)

    def _obs(self, state: Any, key: PRNGKeyArray) -> dict[str, Array]:
        t, q, rate = state
        angle = 2.0 * jnp.pi * t / PERIOD
        seen = jnp.concatenate([q, rate]) + self.noise * jnp.array(NOISE) * jr.normal(key, (4,))
        return {"phase": jnp.stack([jnp.sin(angle), jnp.cos(angle)]), "state": seen * jnp.array(SCALE)}

    def step(self, state: Any, action: Array, key: PRNGKeyArray) -> tuple[Any, Step]:
        k_whether, k_push, k_obs = jr.split(key, 3)
        t, q, rate = state
        t = t + 1.0 / RATE
        q_ref, rate_ref = reference(t)
        target = q_ref + jnp.clip(action, -1.0, 1.0)
        pushed = jr.bernoulli(k_whether, PUSH_SHARE).astype(jnp.float32)
        push = self.push * pushed * jnp.array(PUSH) * jr.normal(k_push, (2,))

        def substep(_: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            q, rate = now
            limit = jnp.array(TMAX)
            torque = jnp.clip(jnp.array(KP) * (target - q) - jnp.array(KD) * rate, -limit, limit) + push
            rate = rate + acceleration(q, rate, torque) / (RATE * SUBSTEPS)
            return q + rate / (RATE * SUBSTEPS), rate

        q, rate = jax.lax.fori_loop(0, SUBSTEPS, substep, (q, rate))
        error, rate_error = jnp.square(q - q_ref).sum(), jnp.square(rate - rate_ref).sum()
        reward = 0.7 * jnp.exp(-10.0 * error) + 0.3 * jnp.exp(-0.1 * rate_error)
        state = (t, q, rate)
        info = {"target": target, "position": q}
        return state, Step(self._obs(state, k_obs), reward, error > 1.0, jnp.asarray(False), info)


class ChangePenalty(AbstractEnv):
    """Arm-track with `weight` |u_t - u_(t-1)|^2 off the reward, u the control: the usual remedy against shaking.

    Before the first step the control is the reference.
    """

    world: ArmTrack
    weight: Float[Array, ""]
    spec: ClassVar[Spec] = ArmTrack.spec
    max_steps: ClassVar[int] = ArmTrack.max_steps

    @classmethod
    def create(cls, weight: float) -> "ChangePenalty":
        """Over the task as it is defined."""
        return cls(ArmTrack.create(), jnp.float32(weight))

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        state, obs = self.world.reset(key)
        return (state, reference(state[0])[0]), obs

    def step(self, state: Any, action: Array, key: PRNGKeyArray) -> tuple[Any, Step]:
        inner, last = state
        inner, out = self.world.step(inner, action, key)
        target = out.info["target"]
        reward = out.reward - self.weight * jnp.square(target - last).sum()
        return (inner, target), Step(out.obs, reward, out.terminated, out.truncated, out.info)
