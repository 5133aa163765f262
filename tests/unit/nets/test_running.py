"""RunningStd against NumPy."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.nets.running import RunningStd, scaled_rewards


def test_rows_in_pieces_are_as_good_as_all_at_once():
    rows = jnp.asarray(3.0 + np.asarray(jr.normal(jr.key(0), (60, 2))) * np.array([1.0, 20.0], np.float32))
    running = RunningStd.create(2)
    assert running.std.tolist() == [0.0, 0.0]
    for piece in (rows[:1], rows[1:20], rows[20:]):
        running = running.seen(piece)
    np.testing.assert_allclose(running.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running.std, rows.std(0), rtol=1e-5)
    assert float(running.count) == 60.0


def test_rewards_are_divided_by_the_spread_of_returns():
    reward, sums = jnp.array([[1.0, -3.0], [500.0, 0.5]]), jnp.array([[1.0, 5.0], [3.0, 7.0]])
    stats, found, scale = scaled_rewards(RunningStd.create(1), reward, sums)
    np.testing.assert_allclose(scale, np.sqrt(5.0), rtol=1e-5)
    np.testing.assert_allclose(found, np.array([[1.0, -3.0], [10.0 * np.sqrt(5.0), 0.5]]) / np.sqrt(5.0), rtol=1e-5)
    assert stats is not None and float(stats.count) == 4.0
    assert scaled_rewards(None, reward, sums)[1] is reward
