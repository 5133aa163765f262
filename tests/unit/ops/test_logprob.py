"""Log densities against SciPy, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from trimtab.ops import gaussian_log_prob, tanh_log_det


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_gaussian_log_prob_is_scipys(lead):
    rng = np.random.default_rng(1)
    x, mean, log_std = (rng.normal(size=(*lead, 4)).astype(np.float32) for _ in range(3))
    expected = stats.norm.logpdf(x, mean, np.exp(log_std)).sum(-1)
    found = gaussian_log_prob(jnp.asarray(x), jnp.asarray(mean), jnp.asarray(log_std))
    assert found.shape == lead
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def test_gaussian_log_prob_gradients():
    # d/dx = -(x - m) / s^2, d/dm its negative, d/d log s = ((x - m) / s)^2 - 1.
    x, mean, log_std = jnp.array([1.5]), jnp.array([0.5]), jnp.log(jnp.array([2.0]))
    grads = jax.grad(gaussian_log_prob, argnums=(0, 1, 2))(x, mean, log_std)
    np.testing.assert_allclose(np.concatenate(grads), [-0.25, 0.25, -0.75], rtol=1e-6)


def test_tanh_log_det_is_log_one_minus_tanh_squared():
    x = np.random.default_rng(2).uniform(-7.0, 7.0, (40, 3))  # where float64 can take 1 - tanh^2 literally
    with jax.enable_x64(True):
        found = np.asarray(tanh_log_det(jnp.asarray(x)))
    np.testing.assert_allclose(found, np.log(1.0 - np.tanh(x) ** 2).sum(-1), rtol=1e-9)


@pytest.mark.parametrize("x", [-50.0, 50.0])
def test_tanh_log_det_far_out(x):
    # In float32 1 - tanh^2 is 0 here; the logarithm is 2 log 2 - 2|x| and its slope -2 tanh x.
    value, slope = jax.value_and_grad(tanh_log_det)(jnp.array([x]))
    np.testing.assert_allclose(value, 2.0 * np.log(2.0) - 100.0, rtol=1e-6)
    np.testing.assert_allclose(slope, [-2.0 * np.sign(x)], rtol=1e-6)


def test_tanh_log_det_slope_against_finite_differences():
    with jax.enable_x64(True):
        x, h = jnp.linspace(-3.0, 3.0, 7), 1e-6
        central = [(tanh_log_det(v[None] + h) - tanh_log_det(v[None] - h)) / (2 * h) for v in x]
        np.testing.assert_allclose(jax.grad(tanh_log_det)(x), central, rtol=1e-7, atol=1e-8)


def test_tanh_log_det_sums_the_last_axis_only():
    assert tanh_log_det(jnp.zeros((2, 3, 4))).shape == (2, 3)
