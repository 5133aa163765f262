import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy import stats

from trimtab.ops import project, quantile_huber

ATOMS = np.linspace(-2.0, 2.0, 5)  # a spacing of 1


def test_project_by_hand():
    p = jnp.array([[0.0, 0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0, 0.5]])
    found = project(p, -2.0, 2.0, jnp.array([0.25, 9.0]), jnp.array([1.0, 0.0]))
    # The atom 0 moves to 0.25: three quarters stay at 0, one goes to 1. Beyond the span all lies at its end.
    np.testing.assert_allclose(found, [[0, 0, 0.75, 0.25, 0], [0, 0, 0, 0, 1]], atol=1e-6)


def test_project_keeps_mass_and_mean_where_nothing_is_cut():
    p = jax.nn.softmax(jr.normal(jr.key(0), (20, 5)))
    shift, scale = jr.uniform(jr.key(1), (20,), minval=-0.4, maxval=0.4), jr.uniform(jr.key(2), (20,), maxval=0.7)
    found = project(p, -2.0, 2.0, shift, scale)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        found @ jnp.asarray(ATOMS, jnp.float32), shift + scale * (p @ ATOMS.astype("f4")), atol=1e-5
    )
    same = project(p, -2.0, 2.0, jnp.zeros(20), jnp.ones(20))
    np.testing.assert_allclose(same, p, atol=1e-6)


def test_a_terminal_reward_is_shared_by_two_atoms():
    p = jax.nn.softmax(jr.normal(jr.key(0), (1, 5)))
    np.testing.assert_allclose(project(p, -2.0, 2.0, jnp.array([1.3]), jnp.zeros(1)), [[0, 0, 0, 0.7, 0.3]], atol=1e-6)


def test_quantile_huber_becomes_the_pinball_loss():
    q, y = jr.normal(jr.key(0), (3, 4)), jr.normal(jr.key(1), (3, 6))
    tau = (np.arange(4) + 0.5) / 4
    error = np.asarray(y)[:, None, :] - np.asarray(q)[:, :, None]
    pinball = np.maximum(tau[None, :, None] * error, (tau[None, :, None] - 1) * error).mean(-1).sum(-1)
    np.testing.assert_allclose(quantile_huber(q, y, 1e-6), pinball, rtol=1e-4)


def test_quantiles_of_a_normal_are_found():
    n = 11
    samples = jnp.asarray(stats.norm.ppf((np.arange(2000) + 0.5) / 2000), jnp.float32)[None]
    step = jax.jit(lambda q: q - 0.5 * jax.grad(lambda q: quantile_huber(q, samples, 0.01)[0])(q))
    q = jnp.zeros((1, n))
    for _ in range(600):
        q = step(q)
    np.testing.assert_allclose(q[0], stats.norm.ppf((np.arange(n) + 0.5) / n), atol=0.05)
