"""Sources: own worlds against a plain Python loop, and replay that starts from a data set."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.worlds import Walk
from trimtab.data.episodes import RECENT
from trimtab.data.sources import OfflineSource, ReplaySource, WorldSource
from trimtab.envs import probes
from trimtab.policies.compose import Uniform

ROUNDS = 40


@jax.jit
def rollout(source: WorldSource, key):
    """The state after `ROUNDS` uniform steps in every copy."""
    policy = Uniform.create(source.env.spec)
    body = lambda i, state: source.advance(policy, state, jr.fold_in(key, i))
    return jax.lax.fori_loop(0, ROUNDS, body, source.init(key))


def by_hand(env, n: int, key):
    """The same as a loop over the bare world: transitions in order, and (return, length) of each ended episode."""
    policy, rows, ended = Uniform.create(env.spec), [], []
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    worlds = [reset(k) for k in jr.split(key, n)]
    total, age = [0.0] * n, [0] * n
    for i in range(ROUNDS):
        k_act, k_env = jr.split(jr.fold_in(key, i))
        actions = policy(jnp.stack([obs for _, obs in worlds]), k_act)
        for j, k in enumerate(jr.split(k_env, n)):
            k_step, k_reset = jr.split(k)
            state, obs = worlds[j]
            new, out = step(state, actions[j], k_step)
            rows.append((obs, actions[j], out.reward, 1.0 - float(out.terminated), out.obs))
            total[j], age[j] = total[j] + float(out.reward), age[j] + 1
            worlds[j] = (new, out.obs)
            if out.terminated or age[j] == env.max_steps:
                ended.append((total[j], age[j]))
                worlds[j], total[j], age[j] = reset(k_reset), 0.0, 0
    return rows, ended, worlds


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("env", [Walk(), probes.Delayed(), probes.Cut()], ids=["Walk", "Delayed", "Cut"])
def test_rows_equal_a_plain_loop(env, n):
    state = rollout(WorldSource.create(env, n, capacity=500, batch_size=4), jr.key(7))
    rows, ended, worlds = by_hand(env, n, jr.key(7))
    buffer = state.buffer
    assert int(buffer.size) == len(rows) == n * ROUNDS
    for leaf, expected in zip(jax.tree.leaves(buffer.trimmed().rows), zip(*rows, strict=True), strict=True):
        np.testing.assert_allclose(leaf, np.stack(expected), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state.obs, np.stack([obs for _, obs in worlds]), rtol=1e-6, atol=1e-6)
    discounts = np.asarray(buffer.trimmed().rows.discount)
    if isinstance(env, Walk):  # both ways to end occur, or this test shows nothing
        assert 0 < (discounts == 0).sum() < len(ended)
    assert int(state.episodes.finished) == len(ended)
    # The ring of recent episodes: the k-th episode took the slot k mod 100, the others are still NaN.
    returns, lengths = np.full(RECENT, np.nan), np.full(RECENT, np.nan)
    for k, (value, age) in enumerate(ended):
        returns[k % RECENT], lengths[k % RECENT] = value, age
    np.testing.assert_allclose(state.episodes.recent_returns, returns, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(state.episodes.recent_lengths, lengths)


def test_stored_is_small_and_restored_is_the_same():
    source = WorldSource.create(Walk(), 2, capacity=500, batch_size=4)
    state = rollout(source, jr.key(1))
    stored = source.stored(state)
    assert stored.buffer.rows.reward.shape == (2 * ROUNDS,)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), source.restored(stored), state))


def test_batches_come_from_the_buffer():
    source = WorldSource.create(Walk(), 2, capacity=500, batch_size=64)
    state = rollout(source, jr.key(1))
    held = {tuple(row) for row in np.asarray(state.buffer.trimmed().rows.obs).tolist()}
    drawn = {tuple(row) for row in np.asarray(source.batch(state, jr.key(5)).obs).tolist()}
    assert drawn <= held and len(drawn) > 30


def numbered(batch, n: int):
    """`n` transitions whose reward is their number."""
    first = jax.tree.map(lambda x: jnp.repeat(x[:1], n, axis=0), batch)
    return dataclasses.replace(first, reward=jnp.arange(n, dtype=jnp.float32))


def test_offline_source_draws_every_row_and_keeps_them(batch):
    source = OfflineSource(numbered(batch, 10), 500)
    state = source.init(jr.key(0))
    drawn = source.batch(state, jr.key(1))
    assert drawn.obs.shape == (500, 3) and drawn.action.shape == (500, 2)
    assert set(np.asarray(drawn.reward).tolist()) == set(range(10))
    assert (np.asarray(source.batch(state, jr.key(2)).reward) != np.asarray(drawn.reward)).any()
    assert jax.tree.leaves((source.stored(state), source.receive(state, batch), source.restored(()))) == []


def test_replay_starts_from_a_data_set(spec, batch):
    data = numbered(batch, 10)
    source = ReplaySource.create(spec, 16, 300, data)
    state = source.init(jr.key(0))
    assert int(state.size) == 10
    assert set(np.asarray(source.batch(state, jr.key(1)).reward).tolist()) == set(range(10))
    new = jax.tree.map(np.asarray, dataclasses.replace(numbered(batch, 2), reward=jnp.array([50.0, 51.0])))
    state = source.receive(state, new)
    assert int(state.size) == 12
    assert set(np.asarray(source.batch(state, jr.key(1)).reward).tolist()) == set(range(10)) | {50, 51}
    assert jax.tree.all(jax.tree.map(np.array_equal, source.restored(source.stored(state)), state))


def test_replay_smaller_than_the_data_set_keeps_the_newest_rows(spec, batch):
    state = ReplaySource.create(spec, 4, 300, numbered(batch, 10)).init(jr.key(0))
    assert set(np.asarray(state.trimmed().rows.reward).tolist()) == {6, 7, 8, 9}


def test_replay_without_a_data_set_is_empty(spec):
    state = ReplaySource.create(spec, 4, 2).init(jr.key(0))
    assert int(state.size) == 0 and state.capacity == 4


def test_symmetric_batches_take_turns(spec, batch):
    """Every second row of a batch is the data set's, however many rows of its own the agent has."""
    new = jax.tree.map(np.asarray, dataclasses.replace(numbered(batch, 2), reward=jnp.array([50.0, 51.0])))
    for n in (100, 101):
        source = ReplaySource.create(spec, 16, n, numbered(batch, 10), symmetric=True)
        state = source.init(jr.key(0))
        assert int(state.size) == 0
        state = source.receive(state, new)
        reward = np.asarray(source.batch(state, jr.key(1)).reward)
        assert len(reward) == n
        assert set(reward[0::2].tolist()) == set(range(10)) and set(reward[1::2].tolist()) == {50, 51}
        assert jax.tree.all(jax.tree.map(np.array_equal, source.restored(source.stored(state)), state))
    assert int(source.stored(state).size) == 2  # the data set is read again, not stored


@pytest.mark.parametrize(("chunk", "next_action"), [(None, False), (3, False), (None, True)])
def test_symmetric_batches_of_a_world_are_of_the_agents_kind(chunk, next_action):
    """Transitions, windows and transitions with the next action, half of them from each side."""
    world = Walk()
    plain = WorldSource.create(world, 2, capacity=500, batch_size=8, chunk=chunk, next_action=next_action)
    rows = rollout(plain, jr.key(1)).buffer.trimmed().rows
    data = jax.tree.map(jnp.asarray, rows)
    lifted = lambda x: eqx.tree_at(lambda r: getattr(r, "transition", r).reward, x, 1e3 + jnp.zeros(2 * ROUNDS))
    source = WorldSource.create(world, 2, 500, 8, lifted(data), chunk=chunk, next_action=next_action, symmetric=True)
    state = rollout(source, jr.key(2))
    assert int(state.buffer.size) == 2 * ROUNDS
    batch = source.batch(state, jr.key(3))
    assert jax.tree.structure(batch) == jax.tree.structure(plain.batch(rollout(plain, jr.key(1)), jr.key(3)))
    reward = np.asarray(batch.reward).reshape(8, -1)
    assert (reward[0::2] == 1e3).all() and (np.abs(reward[1::2]) < 1e2).all()
