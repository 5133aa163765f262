"""Bootstrap targets and target networks, by hand."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.ops import copy, polyak, td_target


def test_td_target_by_hand():
    # A plain step, a terminated one, and a two-step return whose reader has multiplied gamma into the discount.
    reward, discount = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 0.9])
    y = td_target(reward, discount, jnp.array([10.0, 10.0, 10.0]), 0.9)
    np.testing.assert_allclose(y, [10.0, 2.0, 11.1], rtol=1e-6)


def test_td_target_refuses_a_column_for_a_row():
    # The classic (b, 1) - (b,) mistake. Also shows that the type-checking hook of conftest is on.
    with pytest.raises(jaxtyping.TypeCheckError):
        td_target(jnp.ones((4, 1)), jnp.ones(4), jnp.ones(4), 0.9)


def test_polyak_by_hand():
    online = {"weight": jnp.array([1.0, 2.0]), "bias": (jnp.array(-4.0),)}
    target = {"weight": jnp.array([3.0, 6.0]), "bias": (jnp.array(0.0),)}
    mixed = polyak(online, target, 0.25)
    np.testing.assert_allclose(mixed["weight"], [2.5, 5.0], rtol=1e-6)
    np.testing.assert_allclose(mixed["bias"][0], -1.0, rtol=1e-6)
    assert jax.tree.structure(mixed) == jax.tree.structure(target)


numbers = st.floats(-100.0, 100.0, width=32)


@given(numbers, numbers, st.floats(0.0, 1.0, width=32))
def test_polyak_stays_between(online, target, rate):
    mixed = float(polyak(jnp.float32(online), jnp.float32(target), rate))
    slack = 1e-4
    assert min(online, target) - slack <= mixed <= max(online, target) + slack
    np.testing.assert_allclose(mixed, (1.0 - rate) * target + rate * online, atol=slack)


def test_polyak_at_rate_zero_keeps_every_bit():
    target = jnp.array([0.1, -1e-8, 3e7])
    assert jnp.array_equal(polyak(jnp.array([5.0, 5.0, 5.0]), target, 0.0), target)


def test_copy_has_buffers_of_its_own():
    tree = {"a": jnp.arange(3.0), "b": (jnp.float32(2.0),)}
    other = copy(tree)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert jnp.array_equal(x, y)
        assert x.unsafe_buffer_pointer() != y.unsafe_buffer_pointer()
