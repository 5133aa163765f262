"""Rollouts of own worlds against a plain loop, with a policy whose memory counts the steps of its episode."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.worlds import Walk
from trimtab.core import AbstractActor
from trimtab.data.rollouts import RolloutSource, WorldRollouts
from trimtab.envs import probes

GAMMA, STEPS, N = 0.9, 7, 3


class Counting(AbstractActor):
    """Draws -3 twice, then 3, and so on, plus noise; the environment gets it clipped."""

    def memory(self, lead):
        return jnp.zeros((*lead, 1))

    def draw(self, obs, memory, key):
        sign = jnp.where(memory % 3.0 < 2.0, -1.0, 1.0)
        return 3.0 * sign + 0.1 * jr.normal(key, sign.shape), memory + 1.0

    def applied(self, drawn):
        return jnp.clip(drawn, -0.4, 0.4)

    def __call__(self, obs, key):
        return self.applied(self.draw(obs, self.memory(obs.shape[:-1]), key)[0])


@pytest.mark.parametrize("env", [Walk(), probes.Cut()], ids=["Walk", "Cut"])
def test_rollouts_equal_a_plain_loop(env):
    source, actor = WorldRollouts.create(env, jnp.zeros(1), GAMMA, N, STEPS), Counting()
    assert source.steps_per_update == N * STEPS
    state = source.init(jr.key(0))
    advance = jax.jit(lambda state, key: source.advance(actor, state, key))
    world_reset, world_step = jax.jit(env.reset), jax.jit(env.step)
    where = [world_reset(k) for k in jr.split(jr.key(0), N)]
    age, sums = np.zeros(N, int), np.zeros(N)
    seen = {"cut": 0, "terminated": 0}
    for round_ in range(2):  # the second goes on where the first ended
        key = jr.fold_in(jr.key(1), round_)
        state = advance(state, key)
        found = source.batch(state, jr.key(9))
        for t, k in enumerate(jr.split(key, STEPS)):
            k_act, k_env = jr.split(k)
            memory = jnp.asarray(age, jnp.float32)[:, None]
            drawn, _ = actor.draw(None, memory, k_act)
            np.testing.assert_array_equal(found.memory[t], memory)
            np.testing.assert_allclose(found.action[t], drawn, rtol=1e-6)
            for i, k_one in enumerate(jr.split(k_env, N)):
                k_step, k_reset = jr.split(k_one)
                inner, obs = where[i]
                inner, out = world_step(inner, actor.applied(drawn[i]), k_step)
                age[i], sums[i] = age[i] + 1, GAMMA * sums[i] + float(out.reward)
                terminated = bool(out.terminated)
                last = terminated or age[i] == env.max_steps
                row = jax.tree.map(lambda x, t=t, i=i: x[t, i], found)
                np.testing.assert_allclose(row.obs, obs, rtol=1e-6, atol=1e-6)
                np.testing.assert_allclose(row.next_obs, out.obs, rtol=1e-6, atol=1e-6)
                np.testing.assert_allclose([row.reward, row.discounted], [out.reward, sums[i]], rtol=1e-5, atol=1e-6)
                assert row.discount == 1.0 - terminated and bool(row.last) == last
                seen["terminated"] += terminated
                seen["cut"] += last and not terminated
                where[i] = (inner, out.obs)
                if last:
                    where[i], age[i], sums[i] = world_reset(k_reset), 0, 0.0
    assert min(seen.values()) > 0  # both ways to end, or this shows nothing about them


@pytest.mark.parametrize("where", ["device", "host"])
def test_stored_leaves_the_rollout_out(spec, where):
    if where == "device":
        source = WorldRollouts.create(Walk(), jnp.zeros(1), GAMMA, N, STEPS)
        state = jax.jit(lambda key: source.advance(Counting(), source.init(key), key))(jr.key(0))
    else:
        source = RolloutSource.create(spec, jnp.zeros(1), GAMMA, N, STEPS)
        state = jax.tree.map(jnp.ones_like, source.init(jr.key(0)))
    stored = source.stored(state)
    acting = stored.acting if where == "device" else stored
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(acting.rollout))
    again = source.restored(stored)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert jax.tree.all(jax.tree.map(same, again, state))
    part = (
        (lambda s: (s.acting.memory, s.acting.discounted, s.worlds, s.obs))
        if where == "device"
        else (lambda s: (s.memory, s.discounted))
    )
    assert jax.tree.all(jax.tree.map(partial(np.array_equal, equal_nan=True), part(again), part(state)))


def test_cut_begins_anew(spec):
    source = RolloutSource.create(spec, jnp.zeros(1), GAMMA, N, STEPS)
    state = jax.tree.map(jnp.ones_like, source.init(jr.key(0)))
    cut = source.cut(state)
    assert not np.any(cut.memory) and not np.any(cut.discounted) and np.all(state.memory == 1.0)
