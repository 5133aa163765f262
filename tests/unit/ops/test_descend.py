"""The gradient step, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trimtab.ops import descend


def half_square(params):
    """0.5 |p|^2, whose gradient is p."""
    return 0.5 * sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params)), {"size": jnp.float32(7.0)}


def test_one_step_of_gradient_descent():
    tx, params = optax.sgd(0.1), {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    new, _, metrics = descend(tx, params, tx.init(params), half_square, "net")
    np.testing.assert_allclose(new["a"], [2.7], rtol=1e-6)
    np.testing.assert_allclose(new["b"], [[3.6]], rtol=1e-6)
    np.testing.assert_allclose(metrics["net_loss"], 12.5, rtol=1e-6)  # before the step
    assert set(metrics) == {"net_loss", "net_grad_norm", "net_size"}
    assert metrics["net_size"] == 7.0


def test_grad_norm_is_the_global_one():
    # Gradients 3 and 4 in two leaves: the Euclidean norm is 5, the sum of the leaves' norms would be 7.
    tx, params = optax.sgd(0.1), {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    _, _, metrics = descend(tx, params, tx.init(params), half_square, "net")
    np.testing.assert_allclose(metrics["net_grad_norm"], 5.0, rtol=1e-6)


def test_grad_norm_is_taken_before_clipping():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    params = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    new, _, metrics = descend(tx, params, tx.init(params), half_square, "net")
    np.testing.assert_allclose(metrics["net_grad_norm"], 5.0, rtol=1e-6)
    np.testing.assert_allclose([new["a"][0], new["b"][0, 0]], [3.0 - 0.6, 4.0 - 0.8], rtol=1e-6)


def test_two_steps_of_adam():
    rate, b1, b2, eps = 0.1, 0.9, 0.999, 1e-8
    p, m, v = np.array([3.0, -0.5]), np.zeros(2), np.zeros(2)
    tx, params = optax.adam(rate), jnp.array(p, jnp.float32)
    opt_state = tx.init(params)
    for t in (1, 2):
        g = p  # the gradient of half_square
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        params, opt_state, _ = descend(tx, params, opt_state, half_square, "net")
        np.testing.assert_allclose(params, p, rtol=1e-5)


def test_only_the_argument_is_differentiated():
    # The loss p * q is closed over q, and q is the very same array as p: d/dp is q, not 2p.
    p = jnp.array(3.0)
    tx = optax.sgd(1.0)
    new, _, metrics = descend(tx, p, tx.init(p), lambda x: (x * p, {}), "net")
    np.testing.assert_allclose(new, 0.0, atol=1e-7)
    np.testing.assert_allclose(metrics["net_grad_norm"], 3.0, rtol=1e-6)
    assert p == 3.0


def test_a_closed_over_network_stays():
    named, other = {"w": jnp.array(2.0)}, {"w": jnp.array(5.0)}
    tx = optax.adam(0.1)
    new, opt_state, _ = descend(tx, named, tx.init(named), lambda n: (n["w"] * other["w"], {}), "net")
    assert other["w"] == 5.0 and new["w"] != 2.0
    assert jax.tree.structure(new) == jax.tree.structure(named)
    assert jax.tree.structure(opt_state) == jax.tree.structure(tx.init(named))


def test_dtypes_and_shapes_stay():
    tx, params = optax.adam(1e-3), {"a": jnp.ones((2, 3)), "b": jnp.ones(())}
    opt_state = tx.init(params)
    new = descend(tx, params, opt_state, half_square, "net")[:2]
    for before, after in zip(jax.tree.leaves((params, opt_state)), jax.tree.leaves(new), strict=True):
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
