"""Gaussian policies against SciPy, quadrature and finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from trimtab.core import Spec
from trimtab.policies import Gaussian, Mean, TanhGaussian

NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
"""Gauss-Legendre quadrature on (-1, 1)."""


@pytest.fixture
def one_action() -> Spec:
    """One action, so that its density can be integrated."""
    return Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 1)


@pytest.fixture
def squashed(one_action, getkey) -> TanhGaussian:
    """A policy with one action."""
    return TanhGaussian.create(one_action, (8,), getkey())


def density(policy, obs) -> np.ndarray:
    """p(a | obs) at the nodes."""
    return np.exp(policy.log_prob(jnp.broadcast_to(obs, (400, 3)), jnp.asarray(NODES, jnp.float32)[:, None]))


def test_tanh_gaussian_density_integrates_to_one(squashed, make_obs, one_action, getkey):
    for _ in range(3):
        p = density(squashed, make_obs(one_action, getkey(), ()))
        assert p.max() > 0.5
        np.testing.assert_allclose(WEIGHTS @ p, 1.0, rtol=1e-3)


def test_tanh_gaussian_samples_follow_the_density(squashed, make_obs, one_action, getkey):
    obs = make_obs(one_action, getkey(), ())
    p = density(squashed, obs)
    many = jnp.broadcast_to(obs, (20_000, 3))
    action, log_prob = squashed.sample_and_log_prob(many, getkey())
    action, log_prob = np.asarray(action[:, 0]), np.asarray(log_prob)
    for power in (1, 2):
        spread = 4.0 * np.std(action**power) / np.sqrt(20_000)
        np.testing.assert_allclose(np.mean(action**power), WEIGHTS @ (p * NODES**power), atol=spread)
    # The entropy: minus the mean log probability of samples, against the integral of -p log p.
    entropy = -WEIGHTS @ (p * np.log(np.maximum(p, 1e-30)))
    np.testing.assert_allclose(-log_prob.mean(), entropy, atol=4.0 * log_prob.std() / np.sqrt(20_000))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_tanh_gaussian_log_prob_of_its_samples(lead, spec, make_obs, getkey):
    policy, obs = TanhGaussian.create(spec, (8, 8), getkey()), make_obs(spec, getkey(), lead)
    action, log_prob = policy.sample_and_log_prob(obs, getkey())
    assert action.shape == (*lead, 2) and log_prob.shape == lead
    np.testing.assert_allclose(policy.log_prob(obs, action), log_prob, rtol=1e-3, atol=1e-3)
    # The same by SciPy: the normal's density at atanh(a), divided by da/du = 1 - a^2.
    mean, log_std = policy.moments(obs)
    a = np.asarray(action, np.float64)
    expected = (stats.norm.logpdf(np.arctanh(a), mean, np.exp(log_std)) - np.log1p(-(a**2))).sum(-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3, atol=1e-3)


def test_tanh_gaussian_call_is_its_sample(spec, make_obs, getkey):
    policy, obs, key = TanhGaussian.create(spec, (8,), getkey()), make_obs(spec, getkey(), (6,)), getkey()
    np.testing.assert_array_equal(policy(obs, key), policy.sample_and_log_prob(obs, key)[0])


def test_tanh_gaussian_log_prob_is_finite_at_the_bounds(squashed, one_action, make_obs, getkey):
    obs = make_obs(one_action, getkey(), (2,))
    assert np.isfinite(squashed.log_prob(obs, jnp.array([[-1.0], [1.0]]))).all()


def test_tanh_gaussian_clips_log_std(spec, make_obs, getkey):
    policy, obs = TanhGaussian.create(spec, (), getkey()), 1e4 * make_obs(spec, getkey(), (20,))
    log_std = np.asarray(policy.moments(obs)[1])
    assert log_std.min() == -20.0 and log_std.max() == 2.0
    action, log_prob = policy.sample_and_log_prob(obs, getkey())
    assert np.abs(action).max() <= 1.0 and np.isfinite(log_prob).all()


def test_tanh_gaussian_gradient_is_reparametrised(spec, make_obs, getkey):
    policy, obs, key = TanhGaussian.create(spec, (8,), getkey()), make_obs(spec, getkey(), (4,)), getkey()
    with jax.enable_x64(True):
        policy, obs = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (policy, obs))
        direction = jax.tree.map(
            lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), policy
        )

        @jax.jit
        def objective(t):
            moved = jax.tree.map(lambda p, d: p + t * d, policy, direction)
            action, log_prob = moved.sample_and_log_prob(obs, key)
            return (action**2).sum() - 0.3 * log_prob.sum()

        h = 1e-6
        central = (objective(h) - objective(-h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(objective)(0.0), central, rtol=1e-6)


@pytest.mark.parametrize("kind", [TanhGaussian, Gaussian])
def test_mode_is_tanh_of_the_networks_mean_and_what_mean_plays(kind, spec, make_obs, getkey):
    policy, obs = kind.create(spec, (8,), getkey()), make_obs(spec, getkey(), (6,))
    mean = policy.moments(obs)[0]
    expected = np.tanh(mean) if kind is TanhGaussian else mean
    np.testing.assert_allclose(policy.mode(obs), expected, rtol=1e-6)
    np.testing.assert_array_equal(Mean(policy)(obs, getkey()), policy.mode(obs))
    assert np.abs(policy.mode(obs)).max() < 1.0


@pytest.mark.parametrize("lead", [(), (6,), (2, 3)])
def test_gaussian_log_prob_is_scipys(lead, spec, make_obs, getkey):
    policy, obs = Gaussian.create(spec, (8,), getkey()), make_obs(spec, getkey(), lead)
    policy = eqx.tree_at(lambda p: p.log_std, policy, jnp.array([-1.0, 0.5]))
    action = jax.random.uniform(getkey(), (*lead, 2), minval=-1.0, maxval=1.0)
    expected = stats.norm.logpdf(action, policy.mode(obs), np.exp([-1.0, 0.5])).sum(-1)
    found = policy.log_prob(obs, action)
    assert found.shape == lead
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gaussian_starts_at_unit_deviation_and_clips(spec, make_obs, getkey):
    policy, obs = Gaussian.create(spec, (8,), getkey()), make_obs(spec, getkey(), ())
    np.testing.assert_array_equal(policy.moments(obs)[1], [0.0, 0.0])
    wide = eqx.tree_at(lambda p: p.log_std, policy, jnp.array([-9.0, 9.0]))
    np.testing.assert_array_equal(wide.moments(obs)[1], [-5.0, 2.0])


def test_gaussian_samples_have_its_moments(spec, make_obs, getkey):
    policy = eqx.tree_at(lambda p: p.log_std, Gaussian.create(spec, (8,), getkey()), jnp.log(jnp.array([0.1, 0.05])))
    obs = make_obs(spec, getkey(), ())
    samples = policy(jnp.broadcast_to(obs, (20_000, 3)), getkey())
    assert np.abs(policy.mode(obs)).max() < 0.6  # six deviations from the bounds: nothing is clipped
    np.testing.assert_allclose(samples.mean(0), policy.mode(obs), atol=4e-3)
    np.testing.assert_allclose(samples.std(0), [0.1, 0.05], rtol=0.03)


def test_gaussian_samples_are_clipped(spec, make_obs, getkey):
    samples = np.asarray(Gaussian.create(spec, (8,), getkey())(make_obs(spec, getkey(), (200,)), getkey()))
    assert samples.min() == -1.0 and samples.max() == 1.0  # unit deviation: a third falls outside
