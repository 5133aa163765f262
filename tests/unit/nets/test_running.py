"""RunningStd against NumPy."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.nets.running import RunningStd


def test_rows_in_pieces_are_as_good_as_all_at_once():
    rows = jnp.asarray(3.0 + np.asarray(jr.normal(jr.key(0), (60, 2))) * np.array([1.0, 20.0], np.float32))
    running = RunningStd.create(2)
    assert running.std.tolist() == [0.0, 0.0]
    for piece in (rows[:1], rows[1:20], rows[20:]):
        running = running.seen(piece)
    np.testing.assert_allclose(running.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running.std, rows.std(0), rtol=1e-5)
    assert float(running.count) == 60.0
