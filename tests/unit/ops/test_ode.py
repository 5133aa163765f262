"""Flows with known ends and densities: Gaussians and linear fields."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import multivariate_normal

from trimtab.core import UsageError
from trimtab.nets.mlp import MLP
from trimtab.ops.ode import METHODS, divergence, integrate, log_density

MATRIX = np.array([[0.3, -0.8, 0.1], [0.5, -0.4, 0.6], [0.0, 0.2, 0.7]], np.float32)


def linear(x, t):
    """dx/dt = A x."""
    return x @ jnp.asarray(MATRIX.T)


def to_gaussian(mean: float, std: float):
    """The rectified flow from N(0, 1) to N(mean, std^2)."""

    def field(x, t):
        c = (t * std**2 - (1.0 - t)) / (t**2 * std**2 + (1.0 - t) ** 2)
        return mean + c * (x - t * mean)

    return field


@pytest.mark.parametrize(("method", "tolerance"), zip(METHODS, (0.15, 3e-3, 1e-5), strict=True))
def test_linear_fields_have_matrix_exponentials(method, tolerance, getkey):
    x = jr.normal(getkey(), (2, 5, 3))
    exact = np.asarray(x) @ expm(MATRIX).T
    np.testing.assert_allclose(integrate(linear, x, 20, method=method), exact, atol=tolerance)
    back = integrate(linear, jnp.asarray(exact, jnp.float32), 20, method=method, start=1.0, end=0.0)
    np.testing.assert_allclose(back, x, atol=2 * tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_convergence(method):
    order = {"euler": 1, "heun": 2, "rk4": 4}[method]
    with jax.enable_x64(True):
        x = jnp.array([[1.0, -2.0]])
        field = lambda x, t: jnp.sin(3.0 * x) + t * x
        exact = integrate(field, x, 4000, method="rk4")
        errors = [np.abs(integrate(field, x, n, method=method) - exact).max() for n in (40, 80)]
    assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.15)


@pytest.mark.parametrize(
    ("std", "action", "exact", "table"),
    [
        (0.5, 0.0, -0.2258, {5: -0.4382, 10: -0.3289, 20: -0.2766, 100: -0.2358, 1000: -0.2268}),
        (0.5, 0.5, -0.7258, {5: -0.7108, 10: -0.7001, 20: -0.7076, 100: -0.7212, 1000: -0.7253}),
        (0.5, 1.5, -4.7258, {5: -2.8921, 10: -3.6692, 20: -4.1560, 100: -4.6044, 1000: -4.7135}),
        (0.2, 0.0, 0.6905, {5: 0.3901, 10: 0.5693, 20: 0.6353, 100: 0.6803, 1000: 0.6895}),
        (0.2, 0.6, -3.8095, {5: -1.0689, 10: -2.1049, 20: -2.8497, 100: -3.5966, 1000: -3.7877}),
        (1.0, 3.0, -5.4189, {5: -3.7905, 10: -4.4957, 20: -4.9257, 100: -5.3147, 1000: -5.4084}),
    ],
)
def test_densities_of_gaussians_by_euler(std, action, exact, table):
    """The right end points, the sign of the integral and the order of its two updates all show in these digits."""
    for mean in (0.0, 0.7):
        x = jnp.array([[mean + action]])
        for steps, value in table.items():
            assert float(log_density(to_gaussian(mean, std), x, steps)[0]) == pytest.approx(value, abs=1e-4)
        assert float(log_density(to_gaussian(mean, std), x, 200, method="rk4")[0]) == pytest.approx(exact, abs=1e-4)


def test_heun_needs_fewer_evaluations_than_euler_in_the_tail():
    field, x, exact = to_gaussian(0.0, 0.5), jnp.array([[1.5]]), -4.7258
    error = lambda method, steps: abs(float(log_density(field, x, steps, method=method)[0]) - exact)
    assert error("heun", 10) < 0.2 * error("euler", 20)


def test_density_of_a_correlated_gaussian(getkey):
    """x(1) = expm(A) x(0) is normal with covariance expm(A) expm(A)'."""
    x = jr.normal(getkey(), (6, 3))
    flow = expm(MATRIX.astype(np.float64))
    exact = multivariate_normal(np.zeros(3), flow @ flow.T).logpdf(np.asarray(x, np.float64))
    np.testing.assert_allclose(log_density(linear, x, 20, method="rk4"), exact, rtol=1e-5, atol=1e-5)
    lead = x.reshape(2, 3, 3)
    np.testing.assert_allclose(log_density(linear, lead, 20, method="rk4"), exact.reshape(2, 3), rtol=1e-5, atol=1e-5)


def test_divergence_of_a_network_is_the_trace(getkey):
    net = MLP.create(7, (16, 16), 6, getkey(), activation="gelu")
    field = lambda x, t: net(jnp.concatenate([x, jnp.broadcast_to(t, (*x.shape[:-1], 1))], -1))
    x, t = jr.normal(getkey(), (4, 6)), jnp.float32(0.3)
    v, exact = divergence(field, x, t)
    np.testing.assert_allclose(v, field(x, t), rtol=1e-6, atol=1e-6)
    traces = [np.trace(jax.jacobian(lambda row: field(row, t))(row)) for row in x]
    np.testing.assert_allclose(exact, traces, rtol=1e-4, atol=1e-5)
    for gaussian in (False, True):
        keys = jr.split(getkey(), 4096)
        one = lambda k, gaussian=gaussian: divergence(field, x, t, key=k, probes=1, gaussian=gaussian)[1]
        draws = np.asarray(jax.vmap(one)(keys))
        error = draws.std(0) / np.sqrt(len(draws))
        # Eight means are compared: 3.5 is as rare for the worst of them as 3 for one.
        assert (np.abs(draws.mean(0) - exact) < 3.5 * error).all()


def test_rademacher_probes_are_exact_where_the_jacobian_is_diagonal(getkey):
    field = lambda x, t: jnp.sin(x) + t * x
    x, t = jr.normal(getkey(), (4, 6)), jnp.float32(0.5)
    exact = divergence(field, x, t)[1]
    np.testing.assert_allclose(divergence(field, x, t, key=getkey(), probes=1)[1], exact, rtol=1e-5)
    rough = divergence(field, x, t, key=getkey(), probes=1, gaussian=True)[1]
    assert np.abs(rough - exact).max() > 0.1


def test_estimated_densities_agree_on_average(getkey):
    x = jnp.tile(jr.normal(getkey(), (1, 3)), (4000, 1))
    exact = log_density(linear, x[:1], 10)[0]
    found = np.asarray(log_density(linear, x, 10, key=getkey(), probes=1))
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(len(found))
    assert found.std() > 0.01
    # Fresh directions at every step: with one direction for all ten the spread would be sqrt(10) times as large.
    single = np.asarray(divergence(linear, x, jnp.float32(0.0), key=getkey(), probes=1)[1])
    assert found.std() < 0.6 * single.std()


@pytest.mark.parametrize("bad", [dict(method="midpoint"), dict(steps=0)])
def test_bad_requests(bad):
    with pytest.raises(UsageError, match=r"midpoint|at least 1"):
        integrate(linear, jnp.zeros((1, 3)), **(dict(steps=5) | bad))
