"""Own worlds: wrappers, vmapped = looped, and the six probes' documented values by dynamic programming."""

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from tests.worlds import Walk
from trimtab.core import AbstractEnv, UsageError
from trimtab.envs import probes
from trimtab.envs.make import find
from trimtab.envs.register import register, worlds
from trimtab.envs.wrappers import AutoReset, TimeLimit

GAMMA = 0.9
PROBES = ("Constant", "ObsDependent", "Delayed", "ActionDependent", "Both", "Cut")
ALL: dict[str, AbstractEnv] = {name: getattr(probes, name)() for name in PROBES} | {"Walk": Walk()}


@pytest.mark.parametrize("name", ALL)
def test_vmapped_equals_looped(name):
    env, n = AutoReset.create(ALL[name]), 5
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    many_reset, many_step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    keys = jr.split(jr.key(0), n)
    states, obs = many_reset(keys)
    each = [reset(key) for key in keys]
    for i in range(12):
        actions = jr.uniform(jr.fold_in(jr.key(1), i), (n, 1), minval=-1.0, maxval=1.0)
        keys = jr.split(jr.fold_in(jr.key(2), i), n)
        states, out, obs = many_step(states, actions, keys)
        each = [step(each[j][0], actions[j], keys[j]) for j in range(n)]
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
        for a, b in zip(jax.tree.leaves((states, out, obs)), jax.tree.leaves(stacked), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        each = [(state, obs) for state, _, obs in each]


@pytest.mark.parametrize("name", ALL)
def test_shapes_are_those_of_the_spec(name):
    env = ALL[name]
    state, obs = env.reset(jr.key(0))
    assert jax.tree.map(jnp.shape, obs) == jax.tree.map(lambda leaf: leaf.shape, env.spec.obs)
    after, out = env.step(state, env.spec.zero_action(), jr.key(1))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert (out.obs.dtype, out.reward.dtype, out.terminated.dtype) == (jnp.float32, jnp.float32, jnp.bool_)
    assert not out.truncated  # only the time limit truncates


def walk_to(env: Any, steps: int, action: float, seed: int = 0):
    """The last (state, out) after `steps` with one action."""
    state, _ = env.reset(jr.key(seed))
    for i in range(steps):
        state, out = env.step(state, jnp.full((1,), action), jr.key(i))
    return state, out


def test_time_limit_truncates_and_does_not_terminate():
    env = TimeLimit(Walk())
    _, out = walk_to(env, 4, 1.0)
    assert (bool(out.terminated), bool(out.truncated)) == (False, False)
    _, out = walk_to(env, 5, 1.0)
    assert (bool(out.terminated), bool(out.truncated)) == (False, True)
    assert float(out.obs[1]) == 5.0  # the true final observation


def test_termination_wins_over_the_time_limit():
    _, out = walk_to(TimeLimit(probes.Delayed()), 2, 0.0)
    assert (bool(out.terminated), bool(out.truncated)) == (True, False)


class Doors(Walk):
    """A Walk whose first observation tells whether it terminates at once (x < 0)."""

    def step(self, state, action, key):
        new, out = super().step(state, action, key)
        return new, eqx.tree_at(lambda s: s.terminated, out, state[0] < 0.0)


def test_auto_reset_moves_only_the_ended_world():
    env = AutoReset.create(Doors())
    states, obs = jax.vmap(env.reset)(jr.split(jr.key(3), 8))
    ends = np.asarray(obs[:, 0] < 0.0)
    assert 0 < ends.sum() < 8
    states, out, first = jax.vmap(env.step)(states, jnp.zeros((8, 1)), jr.split(jr.key(4), 8))
    np.testing.assert_array_equal(out.terminated, ends)
    # Worlds that go on act on what they saw; ended ones on a new episode's first observation, of age 0.
    np.testing.assert_array_equal(first[~ends], out.obs[~ends])
    np.testing.assert_array_equal(np.asarray(first)[:, 1], np.where(ends, 0.0, 1.0))
    np.testing.assert_array_equal(np.asarray(out.obs)[:, 1], np.ones(8))  # the step itself keeps the true last obs
    np.testing.assert_array_equal(states.elapsed, np.where(ends, 0, 1))
    assert len(set(np.asarray(first)[ends, 0].tolist())) == ends.sum()  # and each restarts with a key of its own


def solve(env: AbstractEnv) -> tuple[dict[float, float], dict[float, float]]:
    """V and the best action of every state of a probe, by value iteration. A time limit is bootstrapped through."""
    actions = np.linspace(-1.0, 1.0, 81)
    starts = {float(env.reset(jr.key(seed))[1][0]) for seed in range(20)}
    table: dict[float, list[tuple[float, float, float]]] = {}
    todo = list(starts)
    while todo:
        x = todo.pop()
        step = jax.vmap(lambda a, x=x: env.step(jnp.array([x]), a, jr.key(0))[1])
        out = step(jnp.asarray(actions, jnp.float32)[:, None])
        columns = (out.reward, 1.0 - np.asarray(out.terminated, float), out.obs[:, 0])
        table[x] = [tuple(map(float, row)) for row in zip(*columns, strict=True)]
        todo += [after for _, alive, after in table[x] if alive and after not in table and after not in todo]
    value = dict.fromkeys(table, 0.0)
    q = lambda x: [r + GAMMA * alive * value.get(after, 0.0) for r, alive, after in table[x]]
    for _ in range(400):
        value = {x: max(q(x)) for x in table}
    return value, {x: float(actions[np.argmax(q(x))]) for x in table}


@pytest.mark.parametrize(
    ("name", "documented"),
    [
        ("Constant", {0.0: 1.0}),
        ("ObsDependent", {-1.0: -1.0, 1.0: 1.0}),
        ("Delayed", {0.0: GAMMA, 1.0: 1.0}),
        ("ActionDependent", {0.0: 1.0}),
        ("Both", {-1.0: 1.0, 1.0: 1.0}),
        ("Cut", {0.0: 1.0 / (1.0 - GAMMA), 1.0: 1.0}),
    ],
)
def test_documented_values_of_the_probes(name, documented):
    value, best = solve(ALL[name])
    assert value == pytest.approx(documented, abs=1e-6)
    expected = {"ActionDependent": {0.0: 0.5}, "Both": {-1.0: -0.5, 1.0: 0.5}}
    if name in expected:
        assert best == pytest.approx(expected[name])


@pytest.mark.parametrize("name", PROBES)
def test_episodes_of_the_probes_end_when_documented(name):
    env = AutoReset.create(ALL[name])
    state, _ = env.reset(jr.key(0))
    for i in range(10):
        before = state
        state, out, _ = env.step(state, jnp.zeros(1), jr.key(i))
        over = bool(out.terminated | out.truncated)
        assert over == (int(before.elapsed) + 1 == ALL[name].max_steps)
        if name == "Cut":  # what is left of an episode that was cut would have gone on from the same observation
            assert bool(out.terminated) == (float(before.inner[0]) == 1.0)
            assert float(out.obs[0]) == float(before.inner[0])
        else:
            assert not out.truncated
    assert ALL[name].max_steps == (2 if name == "Delayed" else 1)


def test_worlds_by_id_and_by_instance():
    assert {f"probe/{name}" for name in PROBES} <= set(worlds())
    found = find("probe/Cut")
    assert isinstance(found.own, probes.Cut) and found.make is None and found.spec == probes.Cut.spec
    assert isinstance(find(Walk()).own, Walk)


def test_register(monkeypatch):
    module = sys.modules["trimtab.envs.register"]  # its name in the package is the function
    monkeypatch.setattr(module, "_WORLDS", dict(module._WORLDS))
    register("mine/Walk", Walk)
    register("mine/Walk", Walk)  # importing a module twice does no harm
    assert isinstance(find("mine/Walk").own, Walk)
    with pytest.raises(UsageError, match=r"'mine/Walk' is registered already"):
        register("mine/Walk", Doors)
    register("mine/Nothing", dict)
    with pytest.raises(UsageError, match=r"'mine/Nothing' was registered with a maker.* dict, no AbstractEnv"):
        find("mine/Nothing")
