"""Windows of steps: by hand on three episodes, and against a list of episodes for every way in which rows arrive."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.worlds import Walk
from trimtab.batches import Chunk, Recorded, Sarsa, ToGo, Transition
from trimtab.core import Spec, UsageError
from trimtab.data import windows
from trimtab.data.sources import OfflineSource, ReplaySource, Returns, WorldSource
from trimtab.envs.plans import HostPlans, Plan, plan_length
from trimtab.policies.compose import Uniform

SPEC = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1, False, (-1.0,), (1.0,))


def rows(numbers, last, terminated=None) -> Recorded:
    """Row k has obs k, action k / 1000, reward k and next observation k + 0.5."""
    x = np.asarray(numbers, np.float32)
    ends = np.zeros(len(x), bool) if terminated is None else np.asarray(terminated, bool)
    discount = np.where(ends, 0.0, 1.0).astype(np.float32)
    transition = Transition(x[:, None], x[:, None] / 1000, x, discount, x[:, None] + 0.5)
    return Recorded(jax.tree.map(jnp.asarray, transition), jnp.asarray(np.asarray(last, bool)))


# Nine rows: an episode of 4 that terminates, one of 2 that is cut, one of 3 that is still going on.
LAST = [0, 0, 0, 1, 0, 1, 0, 0, 0]
TERMINATED = [0, 0, 0, 1, 0, 0, 0, 0, 0]


def test_three_episodes_by_hand():
    gamma, h = 0.5, 3
    data = rows(range(1, 10), LAST, TERMINATED)
    # Start index -> sum of discounted rewards over the window, each step's discount, and which steps are valid.
    expected = {
        1: (1 + 1.0 + 0.75, [1, 1, 1], [1, 1, 1]),
        2: (2 + 1.5 + 1.0, [1, 1, 0], [1, 1, 1]),  # ends exactly where its episode terminates
        3: (3 + 2.0 + 1.25, [1, 0, 1], [1, 1, 0]),
        4: (4 + 2.5 + 1.5, [0, 1, 1], [1, 0, 0]),
        5: (5 + 3.0 + 1.75, [1, 1, 1], [1, 1, 0]),  # crosses a cut: discounts say nothing of it
        6: (6 + 3.5 + 2.0, [1, 1, 1], [1, 0, 0]),
        7: (7 + 4.0 + 2.25, [1, 1, 1], [1, 1, 1]),
    }
    batch = OfflineSource(data, 400, h).batch((), jr.key(0))
    assert isinstance(batch, Chunk)
    total = np.asarray(batch.reward) @ gamma ** np.arange(h)
    seen = set()
    for i, first in enumerate(np.asarray(batch.obs)[:, 0].astype(int).tolist()):
        seen.add(first)
        wanted, discount, valid = expected[first]
        assert total[i] == pytest.approx(wanted)
        np.testing.assert_array_equal(batch.discount[i], discount)
        np.testing.assert_array_equal(batch.valid[i], valid)
        np.testing.assert_array_equal(batch.reward[i], [first, first + 1, first + 2])
        np.testing.assert_allclose(batch.action[i, :, 0], np.array([first, first + 1, first + 2]) / 1000)
        assert float(batch.next_obs[i, 0]) == first + 2.5
    assert seen == set(expected)


def test_windows_reach_over_a_task_that_ended_and_returns_do_not():
    # A task ends at row 2, the recording at row 4.
    data = rows(range(1, 5), [0, 0, 0, 1], [0, 1, 0, 0])
    chunk = OfflineSource(data, 50, 3).batch((), jr.key(0))
    assert isinstance(chunk, Chunk)
    for first, discount, valid in zip(chunk.obs[:, 0], chunk.discount, chunk.valid, strict=True):
        np.testing.assert_array_equal(valid, [1, 1, 1])
        np.testing.assert_array_equal(discount, [1, 0, 1] if first == 1 else [0, 1, 1])
    age = jnp.arange(4, dtype=jnp.int32)
    none, all_of_it = jnp.int32(0), jnp.int32(4)
    to_go = windows.returns_to_go(data, age, 0.5, jnp.float32(8.0), none, all_of_it)
    np.testing.assert_allclose(to_go, [1 + 0.5 * 2, 2, 3 + 0.5 * 4 + 0.25 * 8, 4 + 0.5 * 8])
    summed = windows.n_step(data, age, 3, 0.5, none, all_of_it)
    np.testing.assert_allclose(summed.reward, [2, 2, 5, 4])
    np.testing.assert_allclose(summed.discount, [0, 0, 0.5, 1])
    after = windows.draw_with_next(data, jr.key(1), 50, none, all_of_it)
    np.testing.assert_array_equal(after.next_valid, np.isin(np.asarray(after.reward), [1, 3]))


def test_starts_are_uniform():
    batch = OfflineSource(rows(range(50), [0] * 50), 20_000, 5).batch((), jr.key(1))
    counts = np.bincount(np.asarray(batch.obs)[:, 0].astype(int), minlength=46)
    assert len(counts) == 46
    assert chisquare(counts).pvalue > 0.01


def test_one_step_windows_are_transitions():
    batch = OfflineSource(rows(range(1, 10), LAST, TERMINATED), 100, 1).batch((), jr.key(1))
    np.testing.assert_array_equal(batch.valid, np.ones((100, 1)))
    assert set(np.asarray(batch.reward)[:, 0].tolist()) == set(range(1, 10))
    np.testing.assert_array_equal(batch.discount[:, 0], np.where(np.asarray(batch.reward)[:, 0] == 4, 0.0, 1.0))
    np.testing.assert_array_equal(batch.next_obs, np.asarray(batch.obs) + 0.5)


@jax.jit
def receive(source: ReplaySource, state, items):
    return source.receive(state, items)


@jax.jit
def draw(source: ReplaySource, state, key):
    return source.batch(state, key)


@settings(max_examples=60)
@given(
    capacity=st.sampled_from([4, 7, 12]),
    h=st.sampled_from([1, 2, 4]),
    envs=st.sampled_from([1, 3]),
    started=st.sampled_from([0, 5, 9]),
    ends=st.lists(st.integers(0, 7), max_size=10),
)
@pytest.mark.thorough
def test_windows_equal_those_of_a_list(capacity, h, envs, started, ends):
    # Each stream is a list of (number, last); number 100 e + k is the k-th row of environment e, from 1.
    data = rows(range(1001, 1001 + started), [k % 4 == 3 for k in range(started)]) if started else None
    source = ReplaySource.create(SPEC, capacity, 64, data, chunk=h, num_envs=envs)
    state = source.init(jr.key(0))
    length, base = started // envs, started % envs
    streams = []
    for e in range(envs):
        places = range(base + e * length, base + (e + 1) * length)
        streams.append([(1001 + k, k % 4 == 3 or k == places[-1]) for k in places])
    order = [streams[e][k] for k in range(length) for e in range(envs)]
    for step, bits in enumerate(ends):
        new = [(100 * e + step + 1, bool(bits >> e & 1)) for e in range(envs)]
        state = receive(source, state, rows([n for n, _ in new], [b for _, b in new]))
        order += new
        for e in range(envs):
            streams[e].append(new[e])
    held = {n for n, _ in order[-capacity:]}
    assert int(state.size) == len(held)
    if not held:
        return
    where = {n: (e, k) for e, stream in enumerate(streams) for k, (n, _) in enumerate(stream)}
    batch = draw(source, state, jr.key(len(ends)))
    for i in range(64):
        first = int(batch.reward[i, 0])
        assert first in held
        e, k = where[first]
        alive = True
        for j in range(h):
            inside = k + j < len(streams[e])
            assert bool(batch.valid[i, j]) == (alive and inside)
            if alive and inside:
                assert int(batch.reward[i, j]) == streams[e][k + j][0] and int(batch.reward[i, j]) in held
                alive = not streams[e][k + j][1]
            else:
                alive = False
    # Every start that has all its successors can be drawn, the oldest one too.
    if len(order) >= (h - 1) * envs + 1:
        many = draw(ReplaySource.create(SPEC, capacity, 2000, None, chunk=h, num_envs=envs), state, jr.key(3))
        starts = order[-capacity:][: max(len(held) - (h - 1) * envs, 1)]
        assert set(np.asarray(many.reward)[:, 0].astype(int).tolist()) == {n for n, _ in starts}


@pytest.mark.thorough
def test_data_set_in_the_buffer_ends_where_the_world_begins():
    source = ReplaySource.create(SPEC, 100, 500, rows(range(1, 6), [0] * 5), chunk=2)
    state = source.init(jr.key(0))
    state = source.receive(state, rows([50], [0]))
    state = source.receive(state, rows([51], [0]))
    batch = source.batch(state, jr.key(0))
    valid = {int(n): v.tolist() for n, v in zip(batch.reward[:, 0], np.asarray(batch.valid), strict=True)}
    assert valid == {1: [1, 1], 2: [1, 1], 3: [1, 1], 4: [1, 1], 5: [1, 0], 50: [1, 1]}
    again = source.restored(source.stored(state))
    assert jax.tree.all(jax.tree.map(np.array_equal, again, state))


def test_cut_marks_the_newest_rows():
    source = ReplaySource.create(SPEC, 4, 500, None, chunk=2, num_envs=2)
    state = source.init(jr.key(0))
    for k in (1, 3, 5):  # the ring is full and has turned: rows 3, 4, 5, 6 are held
        state = source.receive(state, rows([k, k + 1], [0, 0]))
    np.testing.assert_array_equal(source.cut(state).rows.last, [True, True, False, False])
    plain = ReplaySource.create(SPEC, 4, 1)
    state = plain.init(jr.key(0))
    assert plain.cut(state) is state


def test_longest_episode():
    assert [windows.longest(np.array(last, bool)) for last in ([0, 0], LAST, [1], [1, 0, 1], [])] == [2, 4, 1, 2, 0]


# Own worlds


@pytest.mark.parametrize("n", [1, 3])
def test_own_world_windows_follow_one_copy(n):
    source = WorldSource.create(Walk(), n, 500, 256, chunk=4)
    state = source.init(jr.key(2))
    policy = Uniform.create(Walk.spec)
    advance = jax.jit(lambda state, key: source.advance(policy, state, key))
    for i in range(30):
        state = advance(state, jr.fold_in(jr.key(3), i))
    batch = source.batch(state, jr.key(4))
    age, valid = np.asarray(batch.obs)[:, 1], np.asarray(batch.valid)
    assert 0 < valid[:, -1].mean() < 1
    whole = valid[:, -1] == 1
    np.testing.assert_array_equal(np.asarray(batch.next_obs)[whole, 1], age[whole] + 4)  # Walk's obs holds its age
    assert (age[whole] <= 1).all()  # an episode lasts 5 steps at most
    assert jax.tree.all(
        jax.tree.map(partial(np.array_equal, equal_nan=True), source.restored(source.stored(state)), state)
    )


# Plans


def test_plan_length():
    assert [plan_length(shape, SPEC) for shape in ((1,), (7, 3))] == [1, 3]
    assert plan_length((4,), Spec(SPEC.obs, 3, True)) == 1
    with pytest.raises(UsageError, match="the policy answers with 5 numbers, but an action has 2"):
        plan_length((5,), Spec(SPEC.obs, 2))


@jax.jit
def follow(plan: Plan, answer: jax.Array, ended: jax.Array):
    action, plan = plan.next(lambda: answer)
    return action, plan.cleared(ended)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 7)), min_size=1, max_size=15))
def test_plans_on_host_and_device_equal_a_list(script):
    # Each step asks a policy that plans `h` steps, if any plan is used up; then some episodes end.
    n = 3
    host, device, model = HostPlans(n, SPEC), Plan.create(n, 3, SPEC), [[] for _ in range(n)]
    for step, (h, bits) in enumerate(script):
        answer = np.arange(n * h, dtype=np.float32).reshape(n, h) + 100 * step
        calls = []
        got = host(lambda answer=answer, calls=calls: (calls.append(1), answer)[1])
        assert len(calls) == any(not plan for plan in model)
        for e in range(n):
            model[e] = model[e] or answer[e].tolist()
        expected = [model[e].pop(0) for e in range(n)]
        np.testing.assert_array_equal(got[:, 0], expected)
        ended = np.array([bool(bits >> e & 1) for e in range(n)])
        action, device = follow(device, answer, ended)
        np.testing.assert_array_equal(action[:, 0], expected)
        model = [[] if ended[e] else model[e] for e in range(n)]
        host.clear(ended)
        other = HostPlans(n, SPEC)
        other.restore(host.state())
        assert other.left.tolist() == [len(plan) for plan in model] == device.left.tolist()
        host = other


def test_plans_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="the policy plans 3 steps, but its agent's config says chunk = 2"):
        Plan.create(1, 2, SPEC).next(lambda: jnp.zeros((1, 3)))
    host = HostPlans(2, SPEC)
    host(lambda: np.zeros((2, 3), np.float32))
    with pytest.raises(UsageError, match="belongs to another number of environments"):
        HostPlans(3, SPEC).restore(host.state())


# Transitions with the next action


def test_next_actions_by_hand():
    # Row k has action k / 1000. Known: the successor's action within an episode; not at 4 (terminated), 6 (cut) or 9
    # (the last row of the data).
    data = rows(range(1, 10), LAST, TERMINATED)
    batch = OfflineSource(data, 400).batch((), jr.key(0))
    assert isinstance(batch, Sarsa)
    number = np.asarray(batch.obs)[:, 0]
    assert set(number.tolist()) == set(range(1, 10))
    np.testing.assert_array_equal(batch.next_valid, ~np.isin(number, [4, 6, 9]))
    known = np.asarray(batch.next_valid) == 1
    np.testing.assert_allclose(np.asarray(batch.next_action)[known, 0], (number[known] + 1) / 1000, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(batch.action)[:, 0], number / 1000, rtol=1e-6)
    np.testing.assert_array_equal(batch.reward, number)
    np.testing.assert_array_equal(batch.discount, np.where(number == 4, 0.0, 1.0))
    np.testing.assert_array_equal(np.asarray(batch.next_obs)[:, 0], number + 0.5)


@pytest.mark.parametrize("envs", [1, 3])
def test_next_actions_of_a_ring_are_those_of_the_same_environment(envs):
    # Number 100 e + k is the k-th row of environment e; environment 1 ends an episode at k = 3.
    source = ReplaySource.create(SPEC, 4 * envs, 300, next_action=True, num_envs=envs)
    state = source.init(jr.key(0))
    for k in range(1, 7):  # the ring holds the rows 3 to 6
        numbers = [100 * e + k for e in range(envs)]
        state = receive(source, state, rows(numbers, [e == 1 and k == 3 for e in range(envs)]))
    batch = draw(source, state, jr.key(1))
    number = np.asarray(batch.obs)[:, 0]
    assert set(number.tolist()) == {100.0 * e + k for e in range(envs) for k in range(3, 7)}
    expected = (number % 100 != 6) & (number != 103)
    np.testing.assert_array_equal(batch.next_valid, expected)
    np.testing.assert_allclose(np.asarray(batch.next_action)[expected, 0], (number[expected] + 1) / 1000, rtol=1e-6)
    # What comes after a cut has nothing to do with the rows before it.
    state = receive(source, source.cut(state), rows([100 * e + 7 for e in range(envs)], [False] * envs))
    batch = draw(source, state, jr.key(2))
    number = np.asarray(batch.obs)[:, 0]
    np.testing.assert_array_equal(batch.next_valid, number % 100 < 6)


def test_next_actions_of_own_worlds():
    source = WorldSource.create(Walk(), 3, 60, 500, next_action=True)
    state = source.init(jr.key(0))
    step = jax.jit(lambda state, key: source.advance(Uniform.create(Walk.spec), state, key))
    for i in range(20):
        state = step(state, jr.fold_in(jr.key(1), i))
    batch = jax.jit(source.batch)(state, jr.key(2))
    found = {
        tuple(o): a for o, a in zip(np.asarray(batch.obs).tolist(), np.asarray(batch.action).tolist(), strict=True)
    }
    known = 0
    for after, action, valid, discount in zip(
        np.asarray(batch.next_obs).tolist(),
        np.asarray(batch.next_action).tolist(),
        np.asarray(batch.next_valid).tolist(),
        np.asarray(batch.discount).tolist(),
        strict=True,
    ):
        if valid and tuple(after) in found:  # the row in which the next action was taken has been drawn too
            assert found[tuple(after)] == action
            known += 1
        assert discount == 1.0 or not valid
        assert after[1] < 5.0 or not valid  # cut after five steps
    assert known > 100


def test_next_actions_after_a_data_set_go_on_with_the_environments():
    source = ReplaySource.create(SPEC, 20, 300, rows(range(1, 6), [0] * 5), next_action=True)
    state = receive(source, source.init(jr.key(0)), rows([100], [False]))
    batch = draw(source, state, jr.key(1))
    number = np.asarray(batch.obs)[:, 0]
    np.testing.assert_array_equal(batch.next_valid, number < 5)  # the data's last row and the newest have none


# Returns


def returned(source, state, key):
    """Obs (the row's number) and return of a batch."""
    batch = source.batch(state, key)
    assert isinstance(batch, ToGo)
    return np.asarray(batch.obs)[:, 0], np.asarray(batch.to_go), batch


def test_returns_of_three_episodes_by_hand():
    source = OfflineSource(rows(range(1, 10), LAST, TERMINATED), 200, None, Returns(jnp.float32(-8.0), 0.5))
    number, to_go, batch = returned(source, (), jr.key(0))
    expected = {
        1: 1 + 1 + 0.75 + 0.5,  # terminated at 4
        2: 2 + 1.5 + 1,
        3: 3 + 2,
        4: 4,
        5: 5 + 3 - 2,  # cut after 6: worth -8 from there on
        6: 6 - 4,
        7: -np.inf,  # goes on after the last row
        8: -np.inf,
        9: -np.inf,
    }
    assert set(number.astype(int).tolist()) == set(expected)
    np.testing.assert_allclose(to_go, [expected[int(n)] for n in number])
    np.testing.assert_array_equal(batch.reward, number)
    np.testing.assert_array_equal(batch.next_obs[:, 0], number + 0.5)
    unknown = OfflineSource(rows(range(1, 10), LAST, TERMINATED), 200, None, Returns(jnp.float32(-jnp.inf), 0.5))
    number, to_go, _ = returned(unknown, (), jr.key(0))
    np.testing.assert_allclose(to_go, [-np.inf if n >= 5 else expected[int(n)] for n in number])


@pytest.mark.parametrize(("envs", "capacity"), [(1, 2000), (3, 2000), (3, 600)])
def test_returns_equal_those_of_a_list(envs, capacity):
    """Episodes of up to 190 steps, several blocks long; the ring may have overwritten their beginnings."""
    rng, gamma, cut = np.random.default_rng(envs), 0.97, -20.0
    steps = 400
    last = rng.random((steps, envs)) < 0.012
    ended = last & (rng.random((steps, envs)) < 0.5)
    reward = rng.normal(size=(steps, envs)).astype(np.float32)
    wanted = np.full((steps + 1, envs), -np.inf)
    for t in reversed(range(steps)):
        after = np.where(ended[t], 0.0, np.where(last[t], cut, wanted[t + 1]))
        wanted[t] = reward[t] + gamma * after
    source = ReplaySource.create(SPEC, capacity, 500, None, num_envs=envs, returns=Returns(jnp.float32(cut), gamma))
    state = source.init(jr.key(0))
    number = np.arange(steps * envs, dtype=np.float32).reshape(steps, envs)
    zeros = np.zeros((envs, 1), np.float32)
    for t in range(steps):
        discount = np.where(ended[t], 0.0, 1.0).astype(np.float32)
        new = Transition(number[t][:, None], zeros, reward[t], discount, zeros)
        state = receive(source, state, Recorded(new, last[t]))
    found, to_go, _ = returned(source, state, jr.key(1))
    index = found.astype(int)
    assert index.min() >= steps * envs - capacity
    flat = wanted[:-1].reshape(-1)
    assert np.isinf(flat[index]).any() and np.isfinite(flat[index]).mean() > 0.1
    np.testing.assert_allclose(to_go, flat[index], rtol=1e-4, atol=1e-4)


def test_a_vanished_weight_is_no_nan():
    # 0.5 ** 400 is 0 in float32, and 0 times -inf would be no number.
    data = rows(range(400), [0] * 399 + [1])
    source = OfflineSource(data, 300, None, Returns(jnp.float32(-jnp.inf), 0.5))
    assert (returned(source, (), jr.key(0))[1] == -np.inf).all()
