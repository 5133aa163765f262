"""Draws by priority, and rewards of several steps, against plain loops."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.worlds import Walk
from trimtab.data import windows
from trimtab.data.buffer import Buffer
from trimtab.data.sources import Replay, WorldSource
from trimtab.policies.compose import Uniform


def filled(n: int, capacity: int) -> Buffer:
    buffer = Buffer.create(jnp.zeros(()), capacity, prioritised=True)
    return buffer.extend(jnp.arange(n, dtype=jnp.float32))


def test_draws_follow_the_priorities():
    buffer = filled(7, 10).reweighed(jnp.arange(7), jnp.array([1.0, 0.0, 4.0, 2.0, 1.0, 0.0, 8.0]))
    share = np.array([1, 0, 4, 2, 1, 0, 8]) / 16
    slots, density = jax.jit(lambda key: buffer.slots(key, 16_000))(jr.key(0))
    np.testing.assert_allclose(np.bincount(slots, minlength=7) / 16_000, share, atol=0.002)
    np.testing.assert_allclose(density, share[slots] * 7, rtol=1e-5)


def test_small_priorities_are_not_lost_among_many():
    n = 200_000
    buffer = filled(n, n)
    weight = jnp.full((n,), 1e-3).at[7].set(100.0)
    slots, _ = jax.jit(lambda b, key: b.slots(key, 30_000))(buffer.reweighed(jnp.arange(n), weight), jr.key(0))
    assert (np.asarray(slots) == 7).mean() == pytest.approx(1 / 3, abs=0.01)
    others = np.asarray(slots)[np.asarray(slots) != 7]
    np.testing.assert_allclose(np.histogram(others, 10, (0, n))[0] / len(others), 0.1, atol=0.01)


def test_new_rows_get_the_largest_priority_and_storing_keeps_all():
    buffer = filled(3, 5).reweighed(jnp.arange(3), jnp.array([0.5, 6.0, 1.0])).extend(jnp.ones(1))
    np.testing.assert_array_equal(buffer.priority, [0.5, 6.0, 1.0, 6.0, 0.0])
    again = buffer.trimmed().padded(5)
    np.testing.assert_array_equal(again.priority, buffer.priority)
    np.testing.assert_array_equal(filled(2, 5).priority, [1, 1, 0, 0, 0])


def test_n_step_sums_stop_at_ends():
    n, gamma = 3, 0.9
    source = WorldSource.create(Walk(), 2, 60, 1, replay=Replay(n, gamma))
    policy, state = Uniform.create(Walk.spec), source.init(jr.key(0))
    for i in range(25):
        state = source.advance(policy, state, jr.fold_in(jr.key(1), i))
    buffer = state.buffer
    slots = jnp.arange(50)
    found = windows.n_step(buffer.rows, slots, n, gamma, jnp.int32(0), buffer.size, 2)
    data, last = jax.tree.map(np.asarray, buffer.rows.transition), np.asarray(buffer.rows.last)
    kinds = set()
    for slot in range(50):
        reward, place = 0.0, slot
        for k in range(n):
            place = slot + 2 * k
            reward += gamma**k * data.reward[place]
            if last[place] or place + 2 >= 50 or k == n - 1:
                break
        kinds.add((k, bool(last[place]), data.discount[place]))
        np.testing.assert_allclose(found.reward[slot], reward, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.discount[slot], gamma**k * data.discount[place], rtol=1e-6)
        np.testing.assert_array_equal(found.next_obs[slot], data.next_obs[place])
        np.testing.assert_array_equal(found.obs[slot], data.obs[slot])
    assert {(0, True, 0.0), (2, False, 1.0), (1, True, 1.0)} <= kinds  # ends of both kinds, and whole windows
