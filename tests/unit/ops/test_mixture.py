"""Mixtures: the entropy of known distributions, and a fit that finds its clusters."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from trimtab.ops.mixture import Mixture, fit_mixture, mixture_entropy


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@pytest.mark.thorough
def test_entropy_of_a_gaussian(size, getkey):
    mix = jr.normal(getkey(), (size, size)) / np.sqrt(size)
    x = jr.normal(getkey(), (2000, size)) @ mix
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.asarray(mix.T @ mix, np.float64))[1]
    assert float(mixture_entropy(x, getkey(), components=1)) == pytest.approx(exact, abs=0.1)
    # With three components the labels of a single cloud count as well, so that it is above, by log 3 at most.
    found = float(mixture_entropy(x, getkey()))
    assert exact - 0.1 < found < exact + np.log(3.0)


@pytest.mark.parametrize("seed", range(5))
def test_far_clusters_add_the_entropy_of_their_labels(seed):
    k_x, k_fit = jr.split(jr.key(seed))
    x = 0.1 * jr.normal(k_x, (2000, 2))
    one = 0.5 * 2 * np.log(2 * np.pi * np.e * 0.01)
    apart = x.at[:1000].add(5.0)
    assert float(mixture_entropy(apart, k_fit, components=2)) == pytest.approx(one + np.log(2.0), abs=0.1)
    uneven = x.at[:500].add(5.0)
    label = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert float(mixture_entropy(uneven, k_fit, components=2)) == pytest.approx(one + label, abs=0.1)


def test_the_fit_finds_weights_means_and_covariances(getkey):
    k_a, k_b = getkey(), getkey()
    a = jnp.array([[-1.0, 0.5]]) + jr.normal(k_a, (600, 2)) @ jnp.array([[0.2, 0.1], [0.0, 0.1]])
    b = jnp.array([[1.0, -0.5]]) + 0.05 * jr.normal(k_b, (1400, 2))
    found = fit_mixture(jnp.concatenate([a, b]), getkey(), components=2)
    left, right = (0, 1) if found.mean[0, 0] < 0 else (1, 0)
    np.testing.assert_allclose(found.weight[left], 0.3, atol=0.01)
    np.testing.assert_allclose(found.mean[left], a.mean(0), atol=1e-3)
    np.testing.assert_allclose(found.covariance[left], np.cov(a.T, bias=True), atol=2e-3)
    np.testing.assert_allclose(found.mean[right], b.mean(0), atol=1e-3)


def test_densities_are_those_of_scipy(getkey):
    factor = jr.normal(getkey(), (3, 4, 4))
    covariance = factor @ factor.transpose(0, 2, 1) + 0.1 * jnp.eye(4)[None]
    mixture = Mixture(jnp.array([0.2, 0.5, 0.3]), jr.normal(getkey(), (3, 4)), covariance)
    x = jr.normal(getkey(), (7, 4))
    expected = [
        multivariate_normal(np.asarray(m), np.asarray(s)).logpdf(np.asarray(x)) + np.log(w)
        for w, m, s in zip(mixture.weight, mixture.mean, mixture.covariance, strict=True)
    ]
    np.testing.assert_allclose(mixture.log_joint(x), np.stack(expected, 1), rtol=2e-4, atol=2e-4)


def test_likelihood_never_falls(getkey):
    x = jr.normal(getkey(), (300, 3)) + 2.0 * jr.bernoulli(getkey(), 0.3, (300, 1)).astype(jnp.float32)
    key = getkey()
    likelihood = [
        float(jax.nn.logsumexp(fit_mixture(x, key, iterations=n).log_joint(x), axis=1).sum()) for n in (0, 1, 3, 10, 50)
    ]
    assert (np.diff(likelihood) > -1e-2).all() and likelihood[-1] > likelihood[0]


def test_actions_at_their_bounds_are_no_error(getkey):
    x = jnp.clip(5.0 * jr.normal(getkey(), (200, 3)), -1.0, 1.0).at[:, 2].set(1.0)
    assert np.isfinite(mixture_entropy(x, getkey()))
    assert np.isfinite(mixture_entropy(jnp.ones((200, 3)), getkey()))
