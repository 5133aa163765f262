"""The expectile loss against the definition of an expectile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from trimtab.ops import expectile_loss


def test_by_hand():
    # |0.7 - 1| * 4 = 1.2 and 0.7 * 1 = 0.7; their mean is 0.95.
    np.testing.assert_allclose(expectile_loss(jnp.array([-2.0, 1.0]), 0.7), 0.95, rtol=1e-6)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.7, 0.9, 0.99])
def test_minimiser_is_the_expectile(tau):
    sample = np.random.default_rng(0).gamma(2.0, size=400).astype(np.float32)

    def balance(e):  # the tau-expectile: what lies above, weighed tau, balances what lies below, weighed 1 - tau
        return tau * np.maximum(sample - e, 0).sum() - (1 - tau) * np.maximum(e - sample, 0).sum()

    expectile = optimize.brentq(balance, sample.min(), sample.max())
    loss = jax.jit(lambda e: expectile_loss(jnp.asarray(sample) - e, tau))
    found = optimize.minimize_scalar(lambda e: float(loss(jnp.float32(e))), bounds=(0.0, 12.0), method="bounded")
    np.testing.assert_allclose(found.x, expectile, atol=2e-3)
    np.testing.assert_allclose(jax.grad(loss)(jnp.float32(expectile)), 0.0, atol=1e-5)


def test_half_is_half_the_mean_square(getkey):
    error = jax.random.normal(getkey(), (50,))
    np.testing.assert_allclose(expectile_loss(error, 0.5), 0.5 * np.mean(np.square(error)), rtol=1e-6)
