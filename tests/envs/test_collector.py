"""Gymnasium environments through the Collector, against plain loops over the environments themselves."""

import io
from functools import partial

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from tests.worlds import Counter
from trimtab.core import RunError, Spec, UsageError
from trimtab.envs.gym import ActionScale, Collector, goal_reward, spec_of
from trimtab.envs.make import find
from trimtab.training.predict import to_units

MUJOCO = (
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
)


def collector(make, n: int = 1, seed: int = 0) -> Collector:
    first = make()
    spec = spec_of(first)
    first.close()
    return Collector(make, n, spec, seed)


def rows_of(transition, i: int = 0):
    """The i-th row as NumPy leaves."""
    return [np.asarray(leaf)[i] for leaf in jax.tree.leaves(transition)]


@pytest.mark.parametrize(("name", "steps"), [("Hopper-v5", 150), ("Pendulum-v1", 410)])
def test_rows_equal_a_plain_loop(name, steps):
    ours = collector(lambda: gymnasium.make(name), seed=5)
    env = gymnasium.make(name)
    low, high = env.action_space.low.astype(np.float64), env.action_space.high.astype(np.float64)
    rng = np.random.default_rng(0)
    obs, _ = env.reset(seed=5)
    cut = ended = 0
    total, returns = 0.0, []
    for step in range(steps):
        action = np.float32(rng.integers(-64, 65, (1, low.size)) / 64)  # scaled without rounding
        np.testing.assert_array_equal(ours.obs[0], obs.astype(np.float32))
        rows = ours.step(action, step)
        next_obs, reward, terminated, truncated, _ = env.step(np.float32(low + (action[0] + 1) / 2 * (high - low)))
        # The true final observation also where the episode ended; the time limit alone leaves the discount at 1.
        for leaf, expected in zip(
            rows_of(rows), (obs, action[0], reward, 0.0 if terminated else 1.0, next_obs), strict=True
        ):
            np.testing.assert_allclose(leaf, np.asarray(expected, np.float32), rtol=1e-6, atol=1e-6)
            assert leaf.dtype == np.float32
        total += float(reward)
        obs = next_obs
        if terminated or truncated:
            ended, cut = ended + terminated, cut + (truncated and not terminated)
            returns.append(total)
            total, (obs, _) = 0.0, env.reset()
    assert (cut, ended > 0) == ((2, False) if name == "Pendulum-v1" else (0, True))
    found = ours.statistics()
    assert found["rollout/ep_rew_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
    assert "rollout/success_rate" not in found
    ours.close()
    env.close()


def test_only_the_ended_environment_moves():
    made = iter([Counter(), Counter(ends=2), Counter(), Counter(limit=3)])
    ours = collector(lambda: next(made), n=3)  # the first Counter only gave its spec
    assert ours.statistics() == {}
    counts = lambda tree: np.asarray(tree["count"])[:, 0].tolist()
    action = np.zeros((3, 2), np.float32)
    seen = []
    for step in range(6):
        rows = ours.step(action, step)
        seen.append((counts(rows.obs), rows.reward.tolist(), rows.discount.tolist(), counts(rows.next_obs)))
    assert seen == [
        ([100, 100, 100], [1, 1, 1], [1, 1, 1], [101, 101, 101]),
        ([101, 101, 101], [2, 2, 2], [0, 1, 1], [102, 102, 102]),  # the first ends, the others go on
        ([200, 102, 102], [1, 3, 3], [1, 1, 1], [201, 103, 103]),  # the third is cut: discount 1, its own last obs
        ([201, 103, 200], [2, 4, 1], [0, 1, 1], [202, 104, 201]),
        ([300, 104, 201], [1, 5, 2], [1, 1, 1], [301, 105, 202]),
        ([301, 105, 202], [2, 6, 3], [0, 1, 1], [302, 106, 203]),
    ]
    assert counts(ours.obs) == [400, 106, 300]
    # Episodes in the order they ended: returns 3, 6, 3, 3, 6; successes 0, 0, 1, 0, 1.
    found = ours.statistics()
    assert found == pytest.approx(
        {"rollout/ep_rew_mean": 21 / 5, "rollout/ep_len_mean": 12 / 5, "rollout/success_rate": 2 / 5}
    )


def test_dict_observations_are_vectors_by_name():
    ours = collector(Counter, n=2)
    assert jax.tree.map(lambda leaf: leaf.shape, ours.spec.obs) == {"count": (1,), "wide": (4,)}
    rows = ours.step(np.zeros((2, 2), np.float32), 0)
    assert jax.tree.map(np.shape, rows.next_obs) == {"count": (2, 1), "wide": (2, 4)}
    np.testing.assert_allclose(rows.next_obs["wide"][1], [0.1, 0.2, 0.3, 0.4])
    assert (ours.spec.action_low, ours.spec.action_high) == ((-2.0, -2.0), (6.0, 6.0))
    np.testing.assert_array_equal(ours.envs[0].actions[0], [2.0, 2.0])  # the middle of the bounds


number = partial(st.floats, width=32, allow_subnormal=False)


@given(number(-100, 100), number(2**-10, 100), number(-1, 1))
def test_action_scaling_is_exact_at_the_bounds_and_stays_inside(low, span, action):
    high = float(np.float32(low) + np.float32(span))
    if not low < high:
        return
    spec = Spec(jax.ShapeDtypeStruct((1,), np.float32), 1, False, (low,), (high,))
    scale = ActionScale(spec, (1,))
    for end, bound in ((-1.0, low), (1.0, high)):
        assert scale(np.float32([end])).tolist() == [bound]
        assert np.asarray(to_units(np.float32([end]), spec)).tolist() == [bound]
    expected = low + (action + 1) / 2 * (high - low)
    size = max(abs(low), abs(high))
    for scaled in (scale(np.float32([action])), to_units(np.float32([action]), spec)):
        assert low - 1e-6 * size <= float(scaled[0]) <= high + 1e-6 * size
        assert float(scaled[0]) == pytest.approx(expected, abs=1e-6 * size)
        assert scaled.dtype == np.float32


def test_actions_take_the_shape_of_the_space():
    spec = Spec(jax.ShapeDtypeStruct((1,), np.float32), 4, False, (0.0,) * 4, (1.0,) * 4)
    np.testing.assert_array_equal(ActionScale(spec, (2, 2))(np.float32([-1, -1, 1, 1])), [[0, 0], [1, 1]])
    discrete = Spec(jax.ShapeDtypeStruct((1,), np.float32), 4, True)
    assert ActionScale(discrete, ())(np.int32(3)) == 3


class Spaces(gymnasium.Env):
    """An environment that is nothing but its spaces."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action


BOX = spaces.Box(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("observation", "action", "text"),
    [
        (spaces.Box(0, 255, (64, 64, 3), np.uint8), BOX, r"observation is an image of shape \(64, 64, 3\)"),
        (spaces.Discrete(5), BOX, r"observation space Discrete is not supported.*FlattenObservation"),
        (spaces.Tuple((BOX, BOX)), BOX, r"observation space Tuple is not supported"),
        (spaces.Dict(a=BOX, b=spaces.Discrete(2)), BOX, r"observation\['b'\] space Discrete is not supported"),
        (spaces.Dict(a=spaces.Dict(pixels=spaces.Box(0, 255, (8, 8), np.uint8))), BOX, r"\['a'\]\['pixels'\] is an im"),
        (BOX, spaces.MultiBinary(3), r"action space MultiBinary is not supported: use Box, Discrete or MultiDiscrete"),
        (BOX, spaces.Box(-np.inf, 1.0, (2,)), r"action space has infinite bounds"),
        (BOX, spaces.Discrete(3, start=1), r"must start at 0, this one starts at 1"),
    ],
)
def test_unsupported_spaces_are_named(observation, action, text):
    with pytest.raises(UsageError, match=text):
        spec_of(Spaces(observation, action))


def test_supported_spaces():
    nested = spaces.Dict(a=spaces.Dict(b=spaces.Box(-1, 1, (2, 3))), c=BOX)
    spec = spec_of(Spaces(nested, spaces.Discrete(4)))
    assert spec.obs["a"]["b"].shape == (6,) and spec.obs_size == 9
    assert (spec.action_size, spec.discrete, spec.action_low) == (4, True, ())


def saved(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a checkpoint gives back: a file without pickles in between."""
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", MUJOCO)
def test_mujoco_state_is_restored_to_the_bit(name):
    # A limit of 30 steps: after the restoration at step 20 it must count on, and the reset must draw the same numbers.
    make = lambda: gymnasium.make(name, max_episode_steps=30)
    rng = np.random.default_rng(1)
    first = collector(make, n=2, seed=3)
    draw = lambda: rng.uniform(-1, 1, (2, first.spec.action_size)).astype(np.float32)
    for step in range(20):
        first.step(draw(), step)
    second = collector(make, n=2, seed=99)
    assert first.exact
    assert second.restore(saved(first.state()))
    times = [[env.unwrapped.data.time for env in each.envs] for each in (first, second)]
    assert times[0] == times[1] and times[0] != [0.0, 0.0]
    cut = 0
    for step in range(20, 55):
        np.testing.assert_array_equal(first.obs, second.obs)
        actions = draw()
        one, two = first.step(actions, step), second.step(actions, step)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            np.testing.assert_array_equal(a, b)
        cut += int((first.episode_length == 0).sum())
    assert cut >= 2  # every copy ended an episode after the restoration, so limit and generator were put to the test
    np.testing.assert_array_equal(first.episode_return, second.episode_return)
    assert first.statistics() == second.statistics()
    first.close()
    second.close()


def test_restored_state_is_not_shared():
    first = collector(lambda: gymnasium.make("InvertedPendulum-v5"))
    state = first.state()
    before = {name: array.copy() for name, array in state.items()}
    for step in range(5):
        first.step(np.ones((1, 1), np.float32), step)
    assert all(np.array_equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gymnasium.make("Pendulum-v1"),
        lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("InvertedPendulum-v5")),
    ],
    ids=["Pendulum", "a wrapper with a state of its own"],
)
def test_other_environments_start_a_new_episode(make):
    first = collector(make, seed=1)
    for step in range(205):
        first.step(np.full((1, 1), 0.5, np.float32), step)
    second = collector(make, seed=1)
    fresh = second.obs.copy()
    assert not first.exact
    assert not second.restore(saved(first.state()))
    np.testing.assert_array_equal(second.obs, fresh)
    assert second.statistics() == first.statistics()  # episodes that have ended are remembered
    assert (second.episode_return.tolist(), second.episode_length.tolist()) == ([0.0], [0])


class Broken(Counter):
    """A Counter that goes wrong at its third step, or at its second reset, in the way of `how`."""

    def __init__(self, how: str) -> None:
        super().__init__(limit=3 if "reset" in how else None)
        self.how = how

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        if self.episodes == 2 and self.how == "raises on reset":
            raise ValueError("no more\nepisodes")
        if self.episodes == 2 and self.how == "nan on reset":
            obs["wide"][0, 0] = np.nan
        return obs, info

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.age == 3 and self.how == "raises":
            raise ValueError("the arm\nfell off")
        if self.age == 3 and self.how == "nan obs":
            obs["wide"][1, 1] = np.nan
        if self.age == 3 and self.how == "infinite obs":
            obs["count"][0] = np.inf
        if self.age == 3 and self.how == "nan reward":
            reward = np.float64("nan")
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("nan obs", r"gave a non-finite observation at step 42"),
        ("infinite obs", r"gave a non-finite observation at step 42"),
        ("nan reward", r"gave a non-finite reward at step 42"),
        ("raises", r"raised at step 42: ValueError: the arm fell off$"),
        ("raises on reset", r"raised on reset at step 42: ValueError: no more episodes$"),
        ("nan on reset", r"gave a non-finite observation on reset at step 42"),
    ],
)
def test_broken_environments_are_named_with_the_step(how, text):
    ours = collector(lambda: Broken(how), n=2)
    for step in (40, 41):
        ours.step(np.zeros((2, 2), np.float32), step)
    with pytest.raises(RunError, match=text):
        ours.step(np.zeros((2, 2), np.float32), 42)


def make_counter() -> Counter:
    """A factory that has a name."""
    return Counter(limit=4)


def test_find_by_id_factory_and_path():
    by_id = find("Pendulum-v1")
    assert (by_id.name, by_id.label, by_id.spec.action_high) == ("Pendulum-v1", "Pendulum-v1", (2.0,))
    by_path, by_factory = find(f"{__name__}:make_counter"), find(make_counter)
    assert by_path.name == by_factory.name == f"{__name__}:make_counter"
    assert by_path.label == "test_collector.make_counter"
    assert find(lambda: Counter(limit=4)).name is None  # cannot be found again by name
    for world in (by_path, by_factory):
        assert world.own is None and isinstance(world.make(None), Counter)
    with pytest.raises(UsageError, match="make_counter takes no render_mode"):
        by_path.make("rgb_array")


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ("Hoper-v5", r"unknown environment 'Hoper-v5': did you mean 'Hopper-v5'\?"),
        ("probe/Delay", r"did you mean 'probe/Delayed'\?"),
        ("???", r"unknown environment '\?\?\?'"),
        ("no_such_module:make", r"cannot import the environment factory 'no_such_module:make'"),
        ("tests.worlds:no_such_name", r"cannot import the environment factory 'tests.worlds:no_such_name'"),
        ("tests.worlds:__doc__", r"'tests.worlds:__doc__' is str, not a function"),
        ("builtins:dict", r"returned dict, not a gymnasium.Env"),
    ],
)
def test_find_names_what_is_wrong(env, text):
    with pytest.raises(UsageError, match=text):
        find(env)


class Writes(gymnasium.Env):
    """Counts steps in arrays of its own, which it gives away and goes on writing into; three steps an episode."""

    def __init__(self) -> None:
        box = spaces.Box(0.0, 99.0, (2,), np.float32)
        self.observation_space = spaces.Dict({"count": box, "minus": spaces.Box(-99.0, 0.0, (1,), np.float32)})
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.given = {"count": np.zeros(2, np.float32), "minus": np.zeros(1, np.float32)}

    def _write(self, count: float):
        self.given["count"][:] = count
        self.given["minus"][:] = -count
        return self.given

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._write(0.0), {}

    def step(self, action):
        obs = self._write(self.given["count"][0] + 1.0)
        return obs, 0.0, False, bool(obs["count"][0] == 3.0), {}


@pytest.mark.parametrize("n", [1, 2])
def test_rows_keep_what_an_environment_writes_over(n):
    ours = collector(Writes, n)
    rows = [ours.step(np.zeros((n, 1), np.float32), step) for step in range(5)]
    for i in range(n):
        assert [row.obs["count"][i, 0] for row in rows] == [0.0, 1.0, 2.0, 0.0, 1.0]
        assert [row.next_obs["count"][i, 0] for row in rows] == [1.0, 2.0, 3.0, 1.0, 2.0]
        assert [row.next_obs["minus"][i, 0] for row in rows] == [-1.0, -2.0, -3.0, -1.0, -2.0]


class Goals(gymnasium.Env):
    """Goals of two rows of two numbers, whose reward is asked in one of several ways."""

    def __init__(self, ask) -> None:
        box = spaces.Box(-9.0, 9.0, (2, 2), np.float32)
        self.observation_space = spaces.Dict({"achieved_goal": box, "desired_goal": box, "observation": box})
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.compute_reward = ask


def far(achieved, goal):
    """1 for each row of a goal that is not reached."""
    return (np.abs(achieved - goal).max(-1) > 0.5).sum(-1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda achieved, goal, info: -far(achieved, goal).astype(np.float32),
        lambda achieved, goal, info: -float(far(achieved, goal)),  # one goal at a time
    ],
    ids=["rows", "one"],
)
def test_rewards_of_goals_that_are_no_vectors(ask):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    goal = rows + np.array([[0, 0, 0, 0], [0, 3, 0, 0], [0, 3, 3, 0]], np.float32)
    found = goal_reward(Goals(ask), "Goals")(rows, goal, {})
    assert found.shape == (3,) and found.tolist() == [0.0, -1.0, -2.0]


def test_a_reward_that_needs_more_than_goals_is_named():
    needs = lambda achieved, goal, info: info["weight"] * far(achieved, goal)
    with pytest.raises(UsageError, match=r"--her asks Goals's compute_reward about goals alone.*KeyError: 'weight'"):
        goal_reward(Goals(needs), "Goals")
    with pytest.raises(UsageError, match="has no compute_reward"):
        goal_reward(gymnasium.make("Pendulum-v1"), "Pendulum-v1")
