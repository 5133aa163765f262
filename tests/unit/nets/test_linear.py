"""Affine layers and layer normalisation, by hand and member by member."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.nets import LayerNorm, Linear


def member(net, i: int):
    """Network `i` of an ensemble."""
    return jax.tree.map(lambda leaf: leaf[i], net)


def test_linear_by_hand():
    layer = Linear(jnp.array([[1.0, 0.0, 2.0], [3.0, 1.0, 0.0]]), jnp.array([0.5, 0.0, -1.0]))
    np.testing.assert_allclose(layer(jnp.array([1.0, 2.0])), [7.5, 2.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_linear_keeps_leading_axes(lead, getkey):
    layer, x = Linear.create(3, 5, getkey()), jax.random.normal(getkey(), (*lead, 3))
    y = layer(x)
    assert y.shape == (*lead, 5)
    rows = [layer(row) for row in x.reshape(-1, 3)]
    np.testing.assert_allclose(y.reshape(-1, 5), np.stack(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False], ids=["one input for all", "an input a member"])
def test_linear_ensemble_is_its_members(shared, getkey):
    layer = Linear.create(3, 5, getkey(), members=4)
    x = jax.random.normal(getkey(), (6, 3) if shared else (4, 6, 3))
    expected = np.stack([member(layer, i)(x if shared else x[i]) for i in range(4)])
    assert expected.shape == (4, 6, 5)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("members", [None, 3])
def test_linear_starts_uniform_within_its_bound(members, getkey):
    bound = 0.5 / np.sqrt(400)  # scale / sqrt(in)
    layer = Linear.create(400, 50, getkey(), members=members, scale=0.5)
    for leaf in jax.tree.leaves(layer):
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.9 * bound
    weights = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(layer)])
    np.testing.assert_allclose(weights.mean(), 0.0, atol=0.02 * bound)
    np.testing.assert_allclose(weights.std(), bound / np.sqrt(3), rtol=0.02)


def test_linear_members_start_different(getkey):
    first, second = (member(Linear.create(3, 5, getkey(), members=2), i) for i in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert not np.any(a == b)


def test_layer_norm_by_hand():
    # Mean 2.5, variance 1.25 (over n, not n - 1); then scale 2, shift 1.
    norm = LayerNorm(jnp.full((4,), 2.0), jnp.full((4,), 1.0))
    expected = 1.0 + 2.0 * np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25)
    np.testing.assert_allclose(norm(jnp.array([1.0, 2.0, 3.0, 4.0])), expected, rtol=1e-5)


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_layer_norm_normalises_each_row(lead, getkey):
    x = 5.0 + 3.0 * jax.random.normal(getkey(), (*lead, 16))
    y = LayerNorm.create(16)(x)
    assert y.shape == x.shape
    np.testing.assert_allclose(y.mean(-1), np.zeros(lead), atol=1e-5)
    np.testing.assert_allclose(y.std(-1), np.ones(lead), rtol=1e-4)


def test_layer_norm_of_a_constant_row_is_finite():
    value, slope = jax.value_and_grad(lambda x: LayerNorm.create(4)(x)[0])(jnp.ones(4))
    assert value == 0.0 and np.isfinite(slope).all()


def test_layer_norm_ensemble_is_its_members(getkey):
    norm = LayerNorm(jax.random.normal(getkey(), (3, 4)), jax.random.normal(getkey(), (3, 4)))
    x = jax.random.normal(getkey(), (3, 5, 4))
    expected = np.stack([member(norm, i)(x[i]) for i in range(3)])
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5, atol=1e-6)
