import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.nets.recurrent import GRU, Remembering


def test_gru_by_hand():
    gru = GRU.create(3, 2, jr.key(0))
    gru = jax.tree.map(lambda x: x + 0.1, gru)  # biases that are not zero
    x, h = np.array([0.5, -1.0, 2.0]), np.array([0.3, -0.7])
    sigmoid = lambda u: 1 / (1 + np.exp(-u))
    w, b = (np.asarray(p, np.float64) for p in (gru.inputs.weight, gru.inputs.bias))
    u, c = (np.asarray(p, np.float64) for p in (gru.states.weight, gru.states.bias))
    a, s = x @ w + b, h @ u + c
    r, z = sigmoid(a[:2] + s[:2]), sigmoid(a[2:4] + s[2:4])
    n = np.tanh(a[4:] + r * s[4:])
    found = gru(jnp.asarray(x, jnp.float32), jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(found, (1 - z) * n + z * h, rtol=1e-5)


def test_each_gate_of_the_state_is_orthogonal():
    for u in np.split(np.asarray(GRU.create(3, 4, jr.key(0)).states.weight), 3, axis=1):
        np.testing.assert_allclose(u.T @ u, np.eye(4), atol=1e-5)


def test_unrolled_is_step_by_step_and_forgets_at_ends():
    net = Remembering.create(3, (4,), 2, jr.key(0), memory=5)
    x = jr.normal(jr.key(1), (2, 6, 3))
    last = jnp.zeros((2, 6), bool).at[0, 2].set(True).at[1, 5].set(True)
    start = jr.normal(jr.key(2), (2, 5))
    found = net.unroll(x, start, last)
    state, expected = start, []
    for t in range(6):
        out, state = net.step(x[:, t], state)
        expected.append(out)
        state = jnp.where(last[:, t, None], 0.0, state)
    np.testing.assert_allclose(found, jnp.stack(expected, 1), rtol=1e-5, atol=1e-6)
    # What came before an end has no say in what comes after it, and has one in what comes before.
    other = net.unroll(x.at[0, 0].add(1.0), start, last)
    changed = np.abs(other - found).max(-1)
    assert (changed[0, :3] > 1e-6).all() and (changed[0, 3:] == 0).all() and (changed[1] == 0).all()


def test_without_memory_it_is_the_perceptron():
    net = Remembering.create(3, (4,), 2, jr.key(0))
    x = jr.normal(jr.key(1), (2, 6, 3))
    assert net.memory((2,)) == ()
    np.testing.assert_array_equal(net.unroll(x, (), jnp.zeros((2, 6), bool)), net.head(x))
