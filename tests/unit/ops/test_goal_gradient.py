"""Gradients by the goal against finite differences and closed forms, and what d of them are worth."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.core import Spec
from trimtab.envs.rotation import DelayedRotation, Rotation
from trimtab.nets.critic import Critic
from trimtab.ops import goal_gradient, match


def test_each_members_gradient_is_the_finite_difference():
    spec = Spec({"goal": jax.ShapeDtypeStruct((3,), jnp.float32)}, 2)
    with jax.enable_x64(True):
        critic = Critic.create(spec, (16, 16), 3, jr.key(0), activation="tanh")
        critic = jax.tree.map(lambda x: x.astype(jnp.float64), critic)
        goal, action = jr.normal(jr.key(1), (5, 3), jnp.float64), jr.normal(jr.key(2), (5, 2), jnp.float64)
        value = jax.jit(lambda goal: critic({"goal": goal}, action))
        found, slope = goal_gradient(value, goal)
        np.testing.assert_array_equal(found, value(goal))
        assert slope.shape == (3, 5, 3)
        for i in range(3):
            h = 1e-6 * jnp.eye(3)[i][None, :].repeat(5, axis=0)
            np.testing.assert_allclose(slope[..., i], (value(goal + h) - value(goal - h)) / 2e-6, rtol=1e-6, atol=1e-9)


def test_the_path_through_the_policy_counts():
    # Q'(s', a', g) = -|s' + a' - g|^2 and pi'(s', g) = g - s' + c: whatever the goal, the policy misses it by c.
    s, goal, c = jr.normal(jr.key(0), (4, 3)), jr.normal(jr.key(1), (4, 3)), 0.7
    value = lambda goal, action: -jnp.square(s + action - goal).sum(-1)[None]
    policy = lambda goal: goal - s + c
    _, total = goal_gradient(lambda g: value(g, policy(g)), goal)
    np.testing.assert_allclose(total, np.zeros((1, 4, 3)), atol=1e-6)
    _, partial = goal_gradient(lambda g: value(g, policy(goal)), goal)
    np.testing.assert_allclose(partial, np.full((1, 4, 3), 2 * c), rtol=1e-5)


def test_match_by_hand():
    slope = jnp.array([[[1.0, 2.0], [0.0, 3.0]]])  # one member, two rows, a goal of two numbers
    target = jnp.array([[0.0, 0.0], [4.0, 0.0]])
    both, one, unit = jnp.ones(2), jnp.array([0.0, 1.0]), jnp.ones(2)
    loss, metrics = match(slope, target, both, unit)
    assert float(loss) == (1 + 4 + 16 + 9) / 4  # the mean over the goal's numbers, not the squared norm
    np.testing.assert_allclose([metrics["slope"], metrics["target_slope"]], [(5**0.5 + 3) / 2, 2.0], rtol=1e-6)
    loss, metrics = match(slope, target, one, unit)
    assert float(loss) == (16 + 9) / 4  # masked rows still count in the mean
    np.testing.assert_allclose([metrics["slope"], metrics["target_slope"], metrics["cosine"]], [3.0, 4.0, 0.0])
    assert float(match(slope, target, both, jnp.array([2.0, 0.5]))[0]) == (4 + 1 + 64 + 2.25) / 4
    nothing, metrics = match(slope, target, jnp.zeros(2), unit)
    assert float(nothing) == 0.0 and np.isnan(metrics["cosine"])


# What a gradient tells: worlds with an unknown orthogonal U, and a model with V in its place


N, GAMMA = 10, 0.9


def norm(g):
    return jnp.linalg.norm(g, axis=-1)


def inner(a, b):
    return (a * b).sum(-1)


class Linear:
    """Rotation's values: the gradient of the reward by the goal is s'."""

    world = Rotation
    weight = 1 / (1 - GAMMA)

    @staticmethod
    def value(v, s, a, g):
        return inner(g, s + a @ v.T) / (1 - GAMMA) + GAMMA * norm(g) / (1 - GAMMA) ** 2

    @staticmethod
    def after(world, s, a, g):
        """Where the world's steps lead."""
        return jax.vmap(world.step, (0, 0, None))((s, g), a, jr.key(0))[1].obs["observation"]

    @staticmethod
    def target(v, world, after, g):
        best = (g / jnp.broadcast_to(norm(g)[:, None], g.shape)) @ v
        return jax.vmap(world.reward)(after, g) + GAMMA * Linear.value(v, after, best, g)


class Alternating:
    """DelayedRotation's values at (x, 0), from where a step pays nothing."""

    world = DelayedRotation
    weight = GAMMA / (1 - GAMMA**2)
    free = GAMMA / (1 - GAMMA**2) ** 2  # what the best actions add for each unit of |g|

    @staticmethod
    def value(v, s, a, g):
        return GAMMA * inner(g, s + a @ v.T) / (1 - GAMMA**2) + GAMMA**2 * Alternating.free * norm(g)

    @staticmethod
    def after(world, s, a, g):
        """The second half of where the world's steps lead."""
        _, step = jax.vmap(world.step, (0, 0, None))((s, jnp.zeros_like(s), g), a, jr.key(0))
        np.testing.assert_array_equal(step.reward, np.zeros(len(s)))
        return step.obs["observation"][:, N:]

    @staticmethod
    def target(v, world, after, g):
        return GAMMA * (inner(g, after) / (1 - GAMMA**2) + GAMMA * Alternating.free * norm(g))


def orthogonal(key):
    return jnp.linalg.qr(jr.normal(key, (N, N), jnp.float64))[0]


def sample(key, m):
    """`m` steps: states, actions of length 1, goals."""
    s, a, g = (jr.normal(k, (m, N), jnp.float64) for k in jr.split(key, 3))
    return s, a / jnp.broadcast_to(norm(a)[:, None], a.shape), g


@pytest.mark.parametrize("values", [Linear, Alternating])
@pytest.mark.thorough
def test_d_gradients_tell_what_takes_d_squared_values(values):
    with jax.enable_x64(True):
        world = values.world(u=orthogonal(jr.key(0)))
        u, v = world.u, orthogonal(jr.key(1))

        def errors(m):
            """How far from U the least squares solutions are: of `m` gradient errors, and of `m` value errors."""
            s, a, g = sample(jr.key(m), m)
            after = values.after(world, s, a, g)
            q, q_slope = goal_gradient(lambda goal: values.value(v, s, a, goal)[None], g)
            y, slope = goal_gradient(lambda goal: values.target(v, world, after, goal)[None], g)
            # For any orthogonal V the errors collapse to linear ones in V.
            vectors, scalars = (q_slope - slope)[0] / values.weight, (q - y)[0] / values.weight
            np.testing.assert_allclose(vectors, a @ (v - u).T, atol=1e-10)
            np.testing.assert_allclose(scalars, inner(g, a @ (v - u).T), atol=1e-9)
            # So V a - vectors is U a, and g . V a - scalars is g . U a, from which U is found.
            by_vector = np.linalg.lstsq(np.asarray(a), np.asarray(a @ v.T - vectors), rcond=None)[0].T
            rows = np.einsum("mi,mj->mij", np.asarray(g), np.asarray(a)).reshape(m, N * N)
            known = np.asarray(inner(g, a @ v.T) - scalars)
            by_scalar = np.linalg.lstsq(rows, known, rcond=None)[0].reshape(N, N)
            return np.linalg.norm(by_vector - u), np.linalg.norm(by_scalar - u)

        vector, scalar = errors(N)
        assert vector < 1e-8 and scalar > 1.0
        assert errors(N * N // 2)[1] > 1.0
        assert errors(N * N)[1] < 1e-6
