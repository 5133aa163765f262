"""Hindsight: frequencies and goals on hand-made episodes, and every way in which rows arrive against lists."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from trimtab.batches import Recorded, Transition
from trimtab.core import UsageError
from trimtab.data.her import Hindsight, HostReward, WorldReward
from trimtab.data.sources import ReplaySource, WorldSource
from trimtab.envs.goals import goal_spec
from trimtab.envs.seek import ContinuousSeek
from trimtab.policies.compose import Uniform

SPEC = goal_spec(1, 1, 1, 1)
OWN = -1.0
"""The goal of every hand-made episode: no state has that number."""


def pays(achieved, goal, info=None):
    """A reward that tells both of its arguments."""
    return achieved[..., 0] * 1000 + goal[..., 0]


class Pays(HostReward):
    """`pays` on the device: HostReward itself is tested once, below."""

    def __call__(self, achieved, goal):
        return pays(achieved, goal)


def make(strategy: str = "future", k: int = 4, horizon: int = 8) -> Hindsight:
    return Hindsight.create(SPEC, Pays(pays), strategy, k, horizon)


def rows(states, last, terminated=None) -> Recorded:
    """A step from each state x to x + 1, of its own goal -1: the states of an episode are successive numbers."""
    x = np.asarray(states, np.float32)[:, None]
    goal = np.full_like(x, OWN)
    obs = lambda x: {"achieved_goal": x, "desired_goal": goal, "observation": 10 * x}
    ends = np.zeros(len(x), bool) if terminated is None else np.asarray(terminated, bool)
    discount = np.where(ends, 0.0, 1.0).astype(np.float32)
    step = Transition(obs(x), x / 100, pays(x + 1, goal), discount, obs(x + 1))
    return Recorded(jax.tree.map(jnp.asarray, step), jnp.asarray(np.asarray(last, bool)))


def drawn(hindsight: Hindsight, data: Recorded, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What a batch holds, after checks that hold for all: state, goal, reward, discount."""
    size = jnp.int32(data.last.shape[0])
    return unpack(hindsight.draw(data, jr.key(seed), n, jnp.int32(0), size))


def unpack(batch: Transition) -> dict[str, np.ndarray]:
    state, goal = np.asarray(batch.obs["achieved_goal"])[:, 0], np.asarray(batch.obs["desired_goal"])[:, 0]
    np.testing.assert_array_equal(batch.next_obs["desired_goal"], batch.obs["desired_goal"])  # one goal for a step
    np.testing.assert_array_equal(batch.next_obs["achieved_goal"][:, 0], state + 1)
    np.testing.assert_array_equal(batch.obs["observation"][:, 0], 10 * state)
    np.testing.assert_allclose(batch.action[:, 0], state / 100, rtol=1e-6)
    np.testing.assert_array_equal(batch.reward, (state + 1) * 1000 + goal)  # computed anew, for that goal
    return {"state": state.astype(int), "goal": goal.astype(int), "discount": np.asarray(batch.discount)}


# An episode of 5 steps (states 10 ... 15) and one of 3 (20 ... 23), then two steps of one that goes on (30, 31, 32).
STATES = [10, 11, 12, 13, 14, 20, 21, 22, 30, 31]
LAST = [0, 0, 0, 0, 1, 0, 0, 1, 0, 0]


def test_future_by_hand():
    n, lengths = 20_000, {10: 5, 20: 3}
    found = drawn(make(), rows(STATES, LAST), n)
    state, goal = found["state"], found["goal"]
    assert set(state) == {10, 11, 12, 13, 14, 20, 21, 22}  # the unfinished episode is left alone
    assert chisquare(np.unique(state, return_counts=True)[1]).pvalue > 0.01
    for first, steps in lengths.items():
        here = (state >= first) & (state < first + 10)
        # 0.8 (T - 1) / T of an episode's steps are relabelled.
        share = binomtest(int((goal[here] != OWN).sum()), int(here.sum()), 0.8 * (steps - 1) / steps)
        assert share.pvalue > 0.01
        for t in range(steps):
            goals = goal[state == first + t]
            seen, counts = np.unique(goals[goals != OWN], return_counts=True)
            assert seen.tolist() == list(range(first + t + 1, first + steps))  # i in t + 1 ... T - 1
            if t < steps - 1:
                assert len(counts) == 1 or chisquare(counts).pvalue > 0.01
                assert binomtest(int((goals != OWN).sum()), len(goals), 0.8).pvalue > 0.01
            else:
                assert (goals == OWN).all()


def test_final_and_episode_by_hand():
    found = drawn(make("final", k=1), rows(STATES, LAST), 4000)
    relabelled = found["goal"] != OWN
    assert binomtest(int(relabelled.sum()), 4000, 0.5).pvalue > 0.01
    np.testing.assert_array_equal(found["goal"][relabelled], np.where(found["state"] < 20, 15, 23)[relabelled])
    found = drawn(make("episode"), rows(STATES, LAST), 20_000)
    assert binomtest(int((found["goal"] != OWN).sum()), 20_000, 0.8).pvalue > 0.01
    for state in set(found["state"]):
        goals = found["goal"][(found["state"] == state) & (found["goal"] != OWN)]
        seen, counts = np.unique(goals, return_counts=True)
        assert seen.tolist() == (list(range(11, 16)) if state < 20 else list(range(21, 24)))
        assert chisquare(counts).pvalue > 0.01


def test_discounts_are_what_was_recorded():
    terminated = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]  # the first episode terminates, the second is cut
    found = drawn(make("final"), rows(STATES, LAST, terminated), 500)
    np.testing.assert_array_equal(found["discount"], np.where(found["state"] == 14, 0.0, 1.0))


def test_before_the_first_episode_has_ended_goals_stay():
    found = drawn(make("episode"), rows(range(10, 14), [0] * 4), 200)
    assert set(found["state"]) == {10, 11, 12, 13} and (found["goal"] == OWN).all()


def test_an_episode_of_one_step_keeps_its_goal():
    found = drawn(make(), rows([10, 20], [1, 1]), 100)
    assert set(found["state"]) == {10, 20} and (found["goal"] == OWN).all()


@jax.jit
def receive(source: ReplaySource, state, items):
    return source.receive(state, items)


@jax.jit
def draw(source, state, key):
    return source.batch(state, key)


@settings(max_examples=40)
@given(
    capacity=st.sampled_from([5, 12]),
    strategy=st.sampled_from(["future", "final", "episode"]),
    envs=st.sampled_from([1, 3]),
    ends=st.lists(st.integers(0, 7), min_size=1, max_size=24),
)
def test_batches_equal_those_of_lists(capacity, strategy, envs, ends):
    # Row k of environment e leads from state 1000 e + k to the next. Episodes have at most six steps.
    source = ReplaySource.create(SPEC, capacity, 1500, hindsight=make(strategy, horizon=6), num_envs=envs)
    state, order = source.init(jr.key(0)), []
    age = [0] * envs
    episodes: list[list[list[int]]] = [[[]] for _ in range(envs)]
    for step, bits in enumerate(ends):
        new = [1000 * (e + 1) + step for e in range(envs)]
        last = [bool(bits >> e & 1) or age[e] == 5 for e in range(envs)]
        state = receive(source, state, rows(new, last))
        order += new
        for e in range(envs):
            age[e] = 0 if last[e] else age[e] + 1
            episodes[e][-1].append(new[e])
            if last[e]:
                episodes[e].append([])
    held = set(order[-capacity:])
    whole = {s: [x for x in one if x in held] for each in episodes for one in each[:-1] for s in one if s in held}
    found = unpack(draw(source, state, jr.key(len(ends))))
    if not whole:
        assert set(found["state"]) <= held and (found["goal"] == OWN).all()
        return
    for s, goal in zip(found["state"].tolist(), found["goal"].tolist(), strict=True):
        reached = [x + 1 for x in whole[s]]  # the states after each step that is left of the episode
        allowed = {
            "future": [g for g in reached[:-1] if g > s],
            "final": reached[-1:],
            "episode": reached,
        }[strategy]
        assert goal in [*allowed, int(OWN)]
    assert set(found["state"]) == set(whole)


def test_a_cut_ends_the_newest_episode():
    source = ReplaySource.create(SPEC, 20, 300, hindsight=make("final"))
    state = source.init(jr.key(0))
    for k in range(3):
        state = source.receive(state, rows([10 + k], [0]))
    assert set(unpack(source.batch(state, jr.key(0)))["goal"]) == {OWN}
    assert set(unpack(source.batch(source.cut(state), jr.key(0)))["goal"]) == {OWN, 13}


def test_the_host_is_asked_for_rewards():
    calls = []

    def function(achieved, goal, info):
        calls.append((type(achieved), achieved.shape, info))
        return pays(achieved, goal).astype(np.float64)

    ask = jax.jit(HostReward(function).__call__)
    achieved, goal = jnp.array([[1.0], [2.0]]), jnp.array([[5.0], [6.0]])
    np.testing.assert_array_equal(ask(achieved, goal), [1005.0, 2006.0])
    assert calls == [(np.ndarray, (2, 1), {})]


def test_what_cannot_be_relabelled_is_refused():
    reward = Pays(pays)
    with pytest.raises(UsageError, match="unknown way of relabelling 'past': choose one of future, final, episode"):
        Hindsight.create(SPEC, reward, "past", 4, 5)
    with pytest.raises(UsageError, match="her-k must be at least 1, got 0"):
        Hindsight.create(SPEC, reward, "future", 0, 5)
    with pytest.raises(UsageError, match="2 numbers are achieved and 6 are desired"):
        Hindsight.create(goal_spec(2, 6, 4, 1), reward, "future", 4, 5)


# Own worlds


@pytest.mark.parametrize("n", [1, 3])
def test_own_world_goals_come_from_the_same_episode(n):
    world = ContinuousSeek.create(2, tolerance=0.5)
    hindsight = Hindsight.create(world.spec, WorldReward(world), "future", 4, world.max_steps)
    source = WorldSource.create(world, n, 70, 2000, hindsight=hindsight)
    state, policy = source.init(jr.key(2)), Uniform.create(world.spec)
    advance = jax.jit(lambda state, key: source.advance(policy, state, key))
    paths: dict[tuple[int, bytes], list[bytes]] = {}
    for i in range(33):
        goal = np.asarray(state.obs["desired_goal"])
        state = advance(state, jr.fold_in(jr.key(3), i))
        newest = [(int(state.buffer.head) - n + e) % 70 for e in range(n)]
        for e, slot in enumerate(newest):
            reached = np.asarray(state.buffer.rows.transition.next_obs["achieved_goal"][slot])
            paths.setdefault((e, goal[e].tobytes()), []).append(reached.tobytes())
    batch = draw(source, state, jr.key(4))
    where = {step: (key, t) for key, path in paths.items() for t, step in enumerate(path)}
    own = {key[1] for key in paths}
    relabelled, rewards = 0, jax.vmap(world.reward)(batch.next_obs["achieved_goal"], batch.obs["desired_goal"])
    np.testing.assert_array_equal(batch.reward, rewards)
    np.testing.assert_array_equal(batch.discount, np.ones(2000))
    for reached, goal in zip(
        np.asarray(batch.next_obs["achieved_goal"]), np.asarray(batch.obs["desired_goal"]), strict=True
    ):
        key, t = where[reached.tobytes()]
        assert len(paths[key]) == 10  # finished
        if goal.tobytes() in own:
            assert goal.tobytes() == key[1]
        else:
            relabelled += 1
            assert goal.tobytes() in paths[key][t:9]
    assert binomtest(relabelled, 2000, 0.8 * 0.9).pvalue > 0.01
    again = source.restored(source.stored(state))
    assert jax.tree.all(jax.tree.map(partial(np.array_equal, equal_nan=True), again, state))


def test_own_worlds_report_success():
    world = ContinuousSeek.create(1, tolerance=2.0)
    source = WorldSource.create(world, 4, 100, 1)
    state, policy = source.init(jr.key(0)), Uniform.create(world.spec)
    advance = jax.jit(lambda state, key: source.advance(policy, state, key))
    ever = np.zeros(4)
    for i in range(10):
        state = advance(state, jr.fold_in(jr.key(1), i))
        ever = np.maximum(ever, np.asarray(state.buffer.rows.reward)[4 * i : 4 * i + 4] == 0.0)
    assert 0 < ever.sum() < 4
    np.testing.assert_array_equal(state.episodes.recent_successes[:4], ever)
    assert np.isnan(state.episodes.recent_successes[4:]).all() and np.isnan(state.episodes.episode_success).all()
