"""Multi-layer perceptrons: by hand, member by member, and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.nets import ACTIVATIONS, MLP, LayerNorm, Linear, concat


def absolute(norm: bool = False) -> MLP:
    """relu(x) + relu(-x) = |x| as a network of width 2."""
    first = Linear(jnp.array([[1.0, -1.0]]), jnp.zeros(2))
    last = Linear(jnp.array([[1.0], [1.0]]), jnp.zeros(1))
    return MLP((first, last), (LayerNorm.create(2),) if norm else (), "relu")


def test_by_hand():
    x = jnp.array([[-3.0], [0.0], [2.5]])
    np.testing.assert_allclose(absolute()(x), [[3.0], [0.0], [2.5]], rtol=1e-6)


def test_norm_stands_before_the_activation():
    # (x, -x) has mean 0 and deviation |x|, so the normalised pair is (+-1, -+1) and relu leaves 1.
    # A norm behind relu would give (1, -1), whose sum is 0.
    np.testing.assert_allclose(absolute(norm=True)(jnp.array([[-3.0], [2.5]])), [[1.0], [1.0]], rtol=1e-5)


def test_norm_may_stand_behind_the_activation():
    # relu leaves (0, 3) and (2.5, 0); normalised each is a pair of +-1, whose sum is 0.
    net = MLP(absolute().layers, (LayerNorm.create(2),), "relu", True)
    x = jnp.array([[-3.0], [2.5]])
    np.testing.assert_allclose(net(x), [[0.0], [0.0]], atol=1e-5)
    np.testing.assert_allclose(net.hidden(x)[0], [[0.0, 3.0], [2.5, 0.0]], rtol=1e-6)


def test_norms_stand_where_they_are_asked_for(getkey):
    net = MLP.create(3, (8, 6, 4), 1, getkey(), norm="layer", norm_layers=(1,))
    assert [norm is None for norm in net.norms] == [True, False, True]
    x = 100.0 * jax.random.normal(getkey(), (5, 3))
    first, second, third = net.layers[0](x), net.layers[1], net.layers[2]
    normal = jax.nn.relu(LayerNorm.create(6)(second(jax.nn.relu(first))))
    np.testing.assert_allclose(net(x), net.layers[3](jax.nn.relu(third(normal))), rtol=1e-5)
    with pytest.raises(UsageError, match=r"norm_layers \(3,\) does not fit 3 hidden layers"):
        MLP.create(3, (8, 6, 4), 1, getkey(), norm="layer", norm_layers=(3,))


def test_hidden_gives_the_activations():
    net = absolute()
    (hidden,) = net.hidden(jnp.array([[-3.0], [2.5]]))
    np.testing.assert_allclose(hidden, [[0.0, 3.0], [2.5, 0.0]], rtol=1e-6)


def test_no_hidden_layer_is_affine(getkey):
    net = MLP.create(3, (), 2, getkey())
    x, y = jax.random.normal(getkey(), (2, 5, 3))
    zero = net(jnp.zeros((5, 3)))
    np.testing.assert_allclose(net(x + y) + zero, net(x) + net(y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", [None, "layer", "layer_after"])
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_leading_axes(lead, norm, getkey):
    net, x = MLP.create(3, (8, 8), 2, getkey(), norm=norm), jax.random.normal(getkey(), (*lead, 3))
    y = net(x)
    assert y.shape == (*lead, 2)
    np.testing.assert_allclose(y.reshape(-1, 2), np.stack([net(row) for row in x.reshape(-1, 3)]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [None, "layer", "layer_after"])
@pytest.mark.parametrize("hidden", [(), (8,), (8, 6)])
def test_ensemble_is_its_members(hidden, norm, getkey):
    net = MLP.create(3, hidden, 2, getkey(), norm=norm, members=4)
    x = jax.random.normal(getkey(), (5, 3))
    expected = np.stack([jax.tree.map(lambda leaf, i=i: leaf[i], net)(x) for i in range(4)])
    assert expected.shape == (4, 5, 2)
    np.testing.assert_allclose(net(x), expected, rtol=1e-5, atol=1e-5)
    for a in range(4):
        for b in range(a):
            assert not np.allclose(expected[a], expected[b])


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_gradients_against_finite_differences(activation, getkey):
    net = MLP.create(3, (8, 8), 1, getkey(), activation=activation, norm="layer", members=2)
    x, direction = jax.random.normal(getkey(), (5, 3)), jax.random.normal(getkey(), (5, 3))
    with jax.enable_x64(True):
        net, x, direction = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (net, x, direction))
        f = jax.jit(lambda t: jnp.sin(net(x + t * direction)).sum())
        h = 1e-6
        np.testing.assert_allclose(jax.grad(f)(0.0), (f(h) - f(-h)) / (2 * h), rtol=1e-6, atol=1e-7)


def test_out_scale_shrinks_the_last_layer_only(getkey):
    key = getkey()
    plain, small = MLP.create(3, (8,), 2, key), MLP.create(3, (8,), 2, key, out_scale=0.01)
    x = jax.random.normal(getkey(), (5, 3))
    np.testing.assert_allclose(plain.hidden(x)[0], small.hidden(x)[0], rtol=1e-6)
    np.testing.assert_allclose(small(x), 0.01 * plain(x), rtol=1e-4, atol=1e-7)


def test_leaves_are_arrays(getkey):
    net = MLP.create(3, (8,), 2, getkey(), norm="layer", members=2)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(net))


@pytest.mark.parametrize("bad", [{"activation": "rleu"}, {"norm": "batch"}])
def test_unknown_names_give_one_line_with_the_choices(bad, getkey):
    with pytest.raises(UsageError) as error:
        MLP.create(3, (8,), 2, getkey(), **bad)
    message = str(error.value)
    assert "\n" not in message and next(iter(bad.values())) in message
    assert ("relu" if "activation" in bad else "layer") in message


def test_concat_takes_leaves_in_tree_order():
    obs = {"b": jnp.array([[3.0]]), "a": jnp.array([[1.0, 2.0]])}
    np.testing.assert_array_equal(concat(obs, jnp.array([[4.0]])), [[1.0, 2.0, 3.0, 4.0]])
