"""What one update must do, worked out apart from the library: plain sums in float64, Adam's first step in closed form.

Networks are used as functions only (tests/unit/nets and /policies hold them to hand-worked numbers).
"""

import jax
import jax.numpy as jnp
import numpy as np

RATE, GAMMA, TAU = 1e-2, 0.9, 0.1
"""Learning rate, discount factor and target mixing of all these tests: large, so that a wrong step shows."""

update = jax.jit(lambda agent, batch, key: agent.update(batch, key))


def double(tree):
    """`tree` with its float leaves in float64. Only inside `jax.enable_x64(True)`."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def first_step(loss_fn, net):
    """Loss, global gradient norm, and the network after Adam's first step, which is -rate g / (|g| + 1e-8)."""
    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(net)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    return float(loss), norm, jax.tree.map(lambda p, g: p - RATE * g / (jnp.abs(g) + 1e-8), net, grads)


def mix(online, target):
    """(1 - tau) target + tau online."""
    return jax.tree.map(lambda o, t: (1.0 - TAU) * t + TAU * o, online, target)


def backup(batch, value) -> np.ndarray:
    """r + gamma d V(s'), row by row."""
    rows = zip(batch.reward, batch.discount, value, strict=True)
    return np.array([float(r) + GAMMA * float(d) * float(v) for r, d, v in rows])


def mean_square(q, y):
    """The mean over members and rows of (Q_e - y)^2."""
    return sum(((member - jnp.asarray(y)) ** 2).mean() for member in q) / q.shape[0]


def assert_same(found, expected, what: str):
    """Two trees agree to float32."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-5, err_msg=what)


def assert_moved(new, old, what: str):
    """A tree has changed visibly."""
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
    assert max(float(np.abs(a - b).max()) for a, b in pairs) > 1e-4, f"{what} did not move"


def assert_untouched(new, old, what: str):
    """A tree has kept every bit."""
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=what)


def assert_metrics(found, expected: dict[str, float]):
    """All metrics, and no others, to float32."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(float(found[name]), value, rtol=2e-4, atol=2e-5, err_msg=name)
