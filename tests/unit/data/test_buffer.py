"""The ring buffer against a plain list, uniform sampling, and extension in place."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from trimtab.core import UsageError
from trimtab.data.buffer import Buffer

TEMPLATE = {"obs": jnp.zeros((2,)), "action": jnp.zeros((), jnp.int32)}


def rows(numbers: list[int]) -> dict[str, np.ndarray]:
    """One row a number, whose leaves all hold that number."""
    x = np.asarray(numbers, np.float32)
    return {"obs": np.stack([x, -x], axis=1), "action": x.astype(np.int32)}


@jax.jit
def extend(buffer: Buffer, items) -> Buffer:
    return buffer.extend(items)


@partial(jax.jit, static_argnums=2)
def sample(buffer: Buffer, key, n: int):
    return buffer.sample(key, n)


def held(buffer: Buffer) -> list[int]:
    """The rows in use, oldest first."""
    size, head = int(buffer.size), int(buffer.head)
    numbers = np.asarray(buffer.rows["action"])[:size].tolist()
    # Slots fill from 0, so before the first wrap head == size; after it the oldest row is at the head.
    return numbers[head % size :] + numbers[: head % size] if size else []


@given(capacity=st.integers(1, 5), sizes=st.lists(st.integers(0, 5), max_size=12))
def test_any_sequence_equals_a_list(capacity, sizes):
    buffer, model, count = Buffer.create(TEMPLATE, capacity), [], 0
    for step, n in enumerate(sizes):
        n = min(n, capacity)
        new = list(range(count + 1, count + n + 1))  # from 1: an unused slot holds 0 and must never be seen
        buffer, model, count = extend(buffer, rows(new)), (model + new)[-capacity:], count + n
        assert int(buffer.size) == len(model)
        assert held(buffer) == model
        if model:
            drawn = sample(buffer, jr.key(step), 32)
            assert set(np.asarray(drawn["action"]).tolist()) <= set(model)
            np.testing.assert_array_equal(drawn["obs"], rows(np.asarray(drawn["action"]).tolist())["obs"])
    kept = buffer.trimmed()
    assert all(x.shape[0] == len(model) for x in jax.tree.leaves(kept.rows))
    assert jax.tree.all(jax.tree.map(np.array_equal, kept.padded(capacity), buffer))


def test_every_slot_counts_also_the_last():
    buffer = Buffer.create(TEMPLATE, 4)
    for number in range(1, 5):
        buffer = extend(buffer, rows([number]))
    assert int(buffer.size) == 4
    assert set(np.asarray(sample(buffer, jr.key(0), 200)["action"]).tolist()) == {1, 2, 3, 4}
    buffer = extend(buffer, rows([5]))
    assert held(buffer) == [2, 3, 4, 5]


@pytest.mark.parametrize("full", [False, True])
def test_sampling_is_uniform(full):
    size = 50 if full else 37
    buffer = extend(Buffer.create(TEMPLATE, 50), rows(list(range(size))))
    drawn = np.asarray(sample(buffer, jr.key(3), 20_000)["action"])
    counts = np.bincount(drawn, minlength=size)
    assert len(counts) == size
    assert chisquare(counts).pvalue > 0.01


def test_key_decides_the_sample():
    buffer = extend(Buffer.create(TEMPLATE, 50), rows(list(range(50))))
    draw = lambda seed: np.asarray(sample(buffer, jr.key(seed), 64)["action"])
    np.testing.assert_array_equal(draw(0), draw(0))
    assert (draw(0) != draw(1)).any()


def test_too_many_rows_and_no_room():
    with pytest.raises(UsageError, match=r"4 rows do not fit a buffer of 3: raise buffer_size"):
        Buffer.create(TEMPLATE, 3).extend(rows([1, 2, 3, 4]))
    with pytest.raises(UsageError, match=r"buffer_size must be at least 1, got 0"):
        Buffer.create(TEMPLATE, 0)


def test_donated_extension_writes_in_place():
    donating = jax.jit(lambda buffer, items: buffer.extend(items), donate_argnums=0)
    buffer = jax.tree.map(jnp.copy, Buffer.create(TEMPLATE, 1000))
    buffer = donating(buffer, rows([1]))
    pointers = {name: x.unsafe_buffer_pointer() for name, x in buffer.rows.items()}
    old = buffer
    for number in range(2, 6):
        buffer = donating(buffer, rows([number]))
    assert old.rows["obs"].is_deleted()
    assert {name: x.unsafe_buffer_pointer() for name, x in buffer.rows.items()} == pointers
    assert held(buffer) == [1, 2, 3, 4, 5]


def test_what_is_stored_keeps_the_buffer_in_place_and_compiles_nothing(caplog):
    donating = jax.jit(lambda buffer, items: buffer.extend(items), donate_argnums=0)
    buffer = donating(jax.tree.map(jnp.copy, Buffer.create(TEMPLATE, 1000)), rows([1]))
    pointers = {name: x.unsafe_buffer_pointer() for name, x in buffer.rows.items()}
    with jax.log_compiles(), caplog.at_level("WARNING"):
        caplog.clear()
        for number in range(2, 6):
            kept = buffer.trimmed()
            buffer = donating(buffer, rows([number]))  # while `kept` is still held
            assert held(kept) == kept.rows["action"].tolist() == list(range(1, number))
        assert not [record for record in caplog.records if "ompiling" in record.getMessage()]
        jax.jit(lambda x: x - 12345.0)(1.0)  # what a compilation looks like
        assert [record for record in caplog.records if "ompiling" in record.getMessage()]
    assert {name: x.unsafe_buffer_pointer() for name, x in buffer.rows.items()} == pointers
    assert held(kept.padded(7)) == [1, 2, 3, 4]


def test_rows_are_cast_to_the_template():
    buffer = extend(Buffer.create({"x": jnp.zeros((), jnp.float32)}, 2), {"x": np.array([True, False])})
    assert buffer.rows["x"].dtype == jnp.float32
    np.testing.assert_array_equal(buffer.rows["x"], [1.0, 0.0])
