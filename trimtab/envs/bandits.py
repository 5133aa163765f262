"""Bandits in the plane whose good actions lie on a curve (MePoly, arXiv:2602.17832): one step, nothing to see but a 1.

r(a) = exp(-min_i |a - p_i|^2 / (2 0.1^2)),  p_i 4,096 noisy points of the curve
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step

POINTS, NOISE, WIDTH = 4096, 0.03, 0.1


def lemniscate(t: np.ndarray) -> np.ndarray:
    """A lying eight, for parameters in [0, 2 pi)."""
    scale = 0.9 / (1.0 + np.sin(t) ** 2)
    return np.stack([scale * np.cos(t), scale * np.sin(t) * np.cos(t)], axis=-1)


def two_moons(t: np.ndarray) -> np.ndarray:
    """Two half circles that reach into each other: the first for parameters in [0, pi), the second for [pi, 2 pi)."""
    first = t < np.pi
    angle = np.where(first, t, t - np.pi)
    circle = 0.55 * np.stack([np.cos(angle), np.where(first, 1.0, -1.0) * np.sin(angle)], axis=-1)
    return circle + np.where(first, -0.25, 0.25)[:, None] * np.array([1.0, 0.0])


class CurveBandit(AbstractEnv):
    """One action, its reward, and the end."""

    cloud: Float[Array, "n 2"]
    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 2, False, (-1.0, -1.0), (1.0, 1.0))
    max_steps: ClassVar[int] = 1

    @classmethod
    def create(cls, curve: str) -> "CurveBandit":
        """`curve` is "lemniscate" or "two_moons"; the same noise in its points each time."""
        rng, whole = np.random.default_rng(0), 2.0 * np.pi
        t = np.linspace(0.0, whole, POINTS, endpoint=False) if curve == "two_moons" else rng.uniform(0.0, whole, POINTS)
        points = (two_moons if curve == "two_moons" else lemniscate)(t) + NOISE * rng.normal(size=(POINTS, 2))
        return cls(jnp.asarray(np.clip(points, -1.0, 1.0), jnp.float32))

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        return jnp.ones(1), jnp.ones(1)

    def step(self, state: Array, action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        apart = jnp.square(self.cloud - jnp.clip(action, -1.0, 1.0)[None]).sum(1).min()
        reward = jnp.exp(-apart / (2.0 * WIDTH**2))
        return state, Step(state, reward, jnp.asarray(True), jnp.asarray(False), {})


def coverage(actions: np.ndarray, curve: str) -> float:
    """Share of 40 places along the noiseless curve near which (0.15, and no other is nearer) there are at least a
    quarter as many of the actions as if they were spread evenly."""
    t = np.linspace(0.0, 2.0 * np.pi, 40, endpoint=False)
    places = (two_moons if curve == "two_moons" else lemniscate)(t)
    apart = np.linalg.norm(actions[:, None] - places[None], axis=-1)
    near = apart.argmin(1)[apart.min(1) <= 0.15]
    return float((np.bincount(near, minlength=40) >= 0.25 * len(actions) / 40).mean())
