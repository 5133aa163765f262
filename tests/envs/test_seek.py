"""ContinuousSeek, DriveSeek, NoisySeek: rules by hand, goals by count, and the same worlds through Gymnasium."""

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from trimtab.core import AbstractPolicy, UsageError
from trimtab.envs.hosted import Hosted
from trimtab.envs.make import find
from trimtab.envs.register import worlds
from trimtab.envs.rotation import DelayedRotation, Rotation
from trimtab.envs.seek import ROW, ContinuousSeek, DriveSeek, NoisySeek, hits
from trimtab.envs.wrappers import AutoReset, TimeLimit
from trimtab.training.evaluate import WorldEvaluator

WORLDS = {
    "rotation": Rotation.create(3),
    "delayed": DelayedRotation.create(3),
    "continuous": ContinuousSeek.create(3),
    "drive": DriveSeek.create(half=2, max_goals=6, max_steps=7),
    "noisy": NoisySeek.create(max_goals=6, max_steps=7),
}


def vector(*numbers: float) -> jax.Array:
    return jnp.asarray(numbers, jnp.float32)


@pytest.mark.parametrize(
    ("s", "goal", "action", "after", "reward"),
    [
        ((0.0, 0.0), (1.0, 1.0), (0.5, -0.25), (0.5, -0.25), -1.0),
        ((0.0, 0.0), (1.0, -1.0), (3.0, -3.0), (1.0, -1.0), 0.0),  # actions are clipped
        ((4.5, -4.5), (5.0, -5.0), (1.0, -1.0), (5.0, -5.0), 0.0),  # the border
        ((0.0, 0.0), (0.59, 0.41), (0.5, 0.5), (0.5, 0.5), 0.0),
        ((0.0, 0.0), (0.61, 0.5), (0.5, 0.5), (0.5, 0.5), -1.0),  # one number is enough to miss
    ],
)
def test_continuous_steps_by_hand(s, goal, action, after, reward):
    state, out = ContinuousSeek.create(2).step((vector(*s), vector(*goal)), vector(*action), jr.key(0))
    np.testing.assert_allclose(state[0], after, atol=1e-6)
    for part, expected in {"achieved_goal": after, "observation": after, "desired_goal": goal}.items():
        np.testing.assert_allclose(out.obs[part], expected, atol=1e-6)
    assert (float(out.reward), bool(out.info["success"]), bool(out.terminated)) == (reward, reward == 0.0, False)


def test_rotations_by_hand():
    turn = vector(0.0, -1.0, 1.0, 0.0).reshape(2, 2)
    s, goal, action = vector(1.0, 2.0), vector(3.0, -1.0), vector(0.0, 2.0)  # scaled to (0, 1), turned to (-1, 0)
    (after, _), out = Rotation(u=turn).step((s, goal), action, jr.key(0))
    np.testing.assert_allclose(after, [0.0, 2.0], atol=1e-6)
    assert float(out.reward) == pytest.approx(-2.0)
    delayed, still = DelayedRotation(u=turn), vector(0.0, 0.0)
    state, out = delayed.step((s, still, goal), action, jr.key(0))
    np.testing.assert_allclose(out.obs["observation"], [0.0, 0.0, 0.0, 2.0], atol=1e-6)
    assert float(out.reward) == 0.0 and not bool(out.terminated)
    state, out = delayed.step(state, action, jr.key(0))
    np.testing.assert_allclose(out.obs["observation"], [0.0, 2.0, 0.0, 0.0], atol=1e-6)
    assert float(out.reward) == pytest.approx(-2.0)
    for world in (Rotation.create(4), DelayedRotation.create(4)):
        np.testing.assert_allclose(world.u @ world.u.T, np.eye(4), atol=1e-6)
        with pytest.raises(UsageError, match="at least one dimension"):
            type(world).create(0)


def test_continuous_goals_are_uniform_in_the_box():
    goals = jax.vmap(lambda k: ContinuousSeek.create(4).reset(k)[1]["desired_goal"])(jr.split(jr.key(0), 4000))
    assert jnp.abs(goals).max() <= 5.0
    np.testing.assert_allclose(goals.mean(0), np.zeros(4), atol=0.2)
    np.testing.assert_allclose(goals.std(0), np.full(4, 10 / 12**0.5), atol=0.1)


class Straight(AbstractPolicy):
    """ContinuousSeek's best policy."""

    def __call__(self, obs, key):
        return jnp.clip(obs["desired_goal"] - obs["achieved_goal"], -1.0, 1.0)


def test_the_best_policy_reaches_every_goal_in_five_steps():
    episodes = WorldEvaluator(ContinuousSeek.create(10), 0)(Straight(), 100)
    assert all(e["success"] == 1.0 and e["length"] == 10 and -4.0 <= e["return"] <= 0.0 for e in episodes)
    # The largest of ten numbers is above 4 nearly always: most goals take all five steps, of which four pay -1.
    assert np.mean([e["return"] for e in episodes]) < -3.5


def test_drive_steps_by_hand():
    world = DriveSeek.create(half=2, max_goals=2)
    goals = vector(1, 2, 0, 0, 0, 0)
    (p, angle, _), out = world.step((vector(1.0, 0.0), jnp.float32(0.0), goals), vector(0.0), jr.key(0))
    np.testing.assert_allclose(p, [2.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(out.obs["observation"], [2.0, 0.0, 1.0, 0.0], atol=1e-6)
    assert (float(out.reward), out.obs["achieved_goal"].tolist()) == (1.0, [2.0, 0.0])
    # Over the border: 3 - 5 = -2. Then a turn of half a radian, of which an action of 2 gets no more.
    (p, angle, _), out = world.step((p, angle, goals), vector(0.0), jr.key(0))
    np.testing.assert_allclose(p, [-2.0, 0.0], atol=1e-6)
    assert float(out.reward) == 0.0
    (p, angle, _), out = world.step((p, angle, goals), vector(2.0), jr.key(0))
    np.testing.assert_allclose(p, [-2.0 + np.cos(0.5), np.sin(0.5)], atol=1e-6)
    np.testing.assert_allclose(out.obs["observation"][2:], [np.cos(0.5), np.sin(0.5)], atol=1e-6)
    # The absent row's cell (0, 0) is no goal.
    _, out = world.step((vector(-1.0, 0.0), jnp.float32(0.0), goals), vector(0.0), jr.key(0))
    assert out.obs["achieved_goal"].tolist() == [0.0, 0.0] and float(out.reward) == 0.0


@pytest.mark.parametrize("start", [-2.5, 2.5, 2.4999999, -2.4999999, 1e-9, -1e-9])
def test_the_torus_has_no_cell_beyond_its_border(start):
    world = DriveSeek.create(half=2, max_goals=1, speed=0.0)
    state = (vector(start, start), jnp.float32(0.0), jnp.zeros(ROW))
    (p, _, _), out = world.step(state, vector(0.0), jr.key(0))
    assert (np.abs(p) <= 2.5).all() and (np.abs(out.obs["achieved_goal"]) <= 2.0).all()


def goals_of(world, n: int, seed: int = 0) -> np.ndarray:
    """`n` sets, (n, max_goals, 3)."""
    reset = jax.jit(jax.vmap(lambda k: world.reset(k)[1]["desired_goal"]))
    return np.asarray(reset(jr.split(jr.key(seed), n))).reshape(n, -1, ROW)


def check_rows(sets: np.ndarray) -> None:
    present = sets[..., 0]
    assert set(np.unique(present)) <= {0.0, 1.0} and (present[:, 0] == 1.0).all()
    assert (np.diff(present, axis=1) <= 0).all()  # present rows first
    assert (sets[present == 0.0] == 0.0).all()
    for rows, here in zip(sets[:50], present[:50] == 1.0, strict=True):
        cells = [tuple(cell) for cell in rows[here, 1:].tolist()]
        assert cells == sorted(set(cells))


def test_drive_goals_are_distinct_cells_evenly_drawn():
    sets = goals_of(DriveSeek.create(half=2, max_goals=10), 4000)
    check_rows(sets)
    counts = sets[..., 0].sum(1)
    np.testing.assert_allclose(np.bincount(counts.astype(int), minlength=11)[1:] / 4000, np.full(10, 0.1), atol=0.02)
    cells = sets[sets[..., 0] == 1.0][:, 1:].astype(int)
    shares = np.bincount((cells[:, 0] + 2) * 5 + cells[:, 1] + 2, minlength=25) / len(cells)
    np.testing.assert_allclose(shares, np.full(25, 1 / 25), atol=0.005)


@pytest.mark.thorough
def test_noisy_goals_lie_in_clusters():
    sets = goals_of(NoisySeek.create(), 2000)
    check_rows(sets)
    one = sets[:, 0, 1:]
    # Centre and goal together: variance 100 + 4 in each direction, and 1/12 by rounding; the first row has the least x.
    everything = sets[sets[..., 0] == 1.0][:, 1:]
    np.testing.assert_allclose(everything.std(0), np.full(2, (104 + 1 / 12) ** 0.5), rtol=0.1)
    assert one[:, 0].mean() < -5.0
    # With p = 0.15 there is a single cluster in 15 % of the episodes: then no goal is far from the others.
    spread = [rows[rows[:, 0] == 1.0][:, 1:].std(0).max() for rows in sets if rows[:, 0].sum() > 20]
    assert np.mean(np.array(spread) < 3.2) == pytest.approx(0.15, abs=0.04)


def test_noisy_steps_by_hand():
    world = NoisySeek.create(max_goals=1, noise=0.0)
    state = (vector(0.0, 0.0), vector(1, 1, 0))
    (p, _), out = world.step(state, vector(0.6, 0.0), jr.key(0))
    np.testing.assert_allclose(p, [0.6, 0.0], atol=1e-6)
    assert float(out.reward) == 1.0 and bool(out.info["success"])
    (p, _), out = world.step(state, vector(1.0, 1.0), jr.key(0))
    np.testing.assert_allclose(p, [2**-0.5, 2**-0.5], atol=1e-6)  # never longer than 1
    assert float(out.reward) == 0.0
    moves = jax.vmap(lambda k: NoisySeek.create(max_goals=1).step(state, vector(0.0, 0.0), k)[0][0])
    drift = moves(jr.split(jr.key(0), 4000))
    np.testing.assert_allclose([drift.mean(), drift.std()], [0.0, 1.0], atol=0.03)


class Nearest(AbstractPolicy):
    """Heads for the nearest goal of a set."""

    def __call__(self, obs, key):
        rows = obs["desired_goal"].reshape(*obs["desired_goal"].shape[:-1], -1, ROW)
        p = obs["observation"]
        way = rows[..., 1:] - jnp.broadcast_to(p[..., None, :], rows[..., 1:].shape)
        distance = jnp.where(rows[..., 0] > 0.5, jnp.abs(way).sum(-1), jnp.inf)
        return jnp.take_along_axis(way, distance.argmin(-1)[..., None, None], axis=-2)[..., 0, :]


@pytest.mark.thorough
def test_a_greedy_walk_in_noisy_seek_earns_about_twelve():
    # The paper's heads for the nearest centre, which only the world knows, and earns some 12.
    returns = [e["return"] for e in WorldEvaluator(NoisySeek.create(), 1)(Nearest(), 1000)]
    assert 10.0 < np.mean(returns) < 15.0


@pytest.mark.parametrize("name", ["drive", "noisy"])
def test_the_reward_is_one_of_the_items(name):
    world = WORLDS[name]
    (*_, goals), _ = world.reset(jr.key(3))
    rows = goals.reshape(-1, ROW)
    for cell in rows[rows[:, 0] == 1.0][:, 1:]:
        assert hits(cell, goals).sum() == 1 and float(world.reward(cell, goals)) == 1.0
    assert float(world.reward(vector(77.0, 0.0), goals)) == 0.0
    assert not hits(vector(0.0, 0.0), jnp.zeros(6)).any()


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.thorough
def test_steps_pay_the_reward_of_their_goals_and_fit_the_spec(name):
    world, n = WORLDS[name], 8
    env = AutoReset.create(world)
    states, obs = jax.vmap(env.reset)(jr.split(jr.key(0), n))
    assert jax.tree.map(lambda x: x.shape[1:], obs) == jax.tree.map(lambda leaf: leaf.shape, world.spec.obs)
    step, cut = jax.jit(jax.vmap(env.step)), []
    for i in range(world.max_steps):
        actions = jr.uniform(jr.fold_in(jr.key(1), i), (n, world.spec.action_size), minval=-1.0, maxval=1.0)
        goals = obs["desired_goal"]
        states, out, obs = step(states, actions, jr.split(jr.fold_in(jr.key(2), i), n))
        np.testing.assert_array_equal(out.reward, jax.vmap(world.reward)(out.obs["achieved_goal"], goals))
        np.testing.assert_array_equal(out.obs["desired_goal"], goals)
        assert not out.terminated.any()
        cut.append(bool(out.truncated.all()))
    assert cut == [False] * (world.max_steps - 1) + [True]
    assert (np.asarray(obs["desired_goal"]) != np.asarray(goals)).any()  # a new episode, a new goal


@pytest.mark.parametrize(
    "make",
    [
        lambda: ContinuousSeek.create(0),
        lambda: DriveSeek.create(half=1, max_goals=10),
        lambda: NoisySeek.create(max_goals=0),
    ],
)
def test_sizes_that_do_not_exist_are_refused(make):
    with pytest.raises(UsageError, match=r"at least|between"):
        make()


# Through Gymnasium


@pytest.mark.filterwarnings("ignore:.*A Box observation space:UserWarning")  # positions have no bounds
def test_every_own_world_is_registered_with_gymnasium():
    ours = [name for name in worlds() if name.startswith(("trimtab/", "probe/"))]  # other tests register theirs
    assert len(ours) > 10 and all(name in gymnasium.registry for name in ours)
    env = gymnasium.make("trimtab.envs.hosted:trimtab/ContinuousSeek5-v0")
    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.world.dimension == 5  # pyright: ignore


def test_hosted_equals_the_world():
    world = WORLDS["noisy"]
    env, limited = Hosted(world), TimeLimit(world)
    obs, _ = env.reset(seed=4)
    keys = np.random.Generator(np.random.PCG64(np.random.SeedSequence(4)))
    state, expected = limited.reset(jr.key(keys.integers(2**31)))
    ever = False
    for i in range(world.max_steps):
        for part in obs:
            np.testing.assert_allclose(obs[part], expected[part], atol=1e-6)
        action = np.array([0.3, -0.1 * i], np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        state, out = limited.step(state, jnp.asarray(action), jr.key(keys.integers(2**31)))
        expected, ever = out.obs, ever or bool(out.info["success"])
        assert (reward, terminated, truncated) == (float(out.reward), False, i == world.max_steps - 1)
        assert info == {"is_success": ever}
        assert env.compute_reward(obs["achieved_goal"], obs["desired_goal"], {}) == reward
    achieved = np.stack([obs["achieved_goal"]] * 3)
    np.testing.assert_array_equal(
        env.compute_reward(achieved, np.stack([obs["desired_goal"]] * 3), {}), np.full(3, reward)
    )
    with pytest.raises(UsageError, match="TwoRoute has no goals"):
        Hosted(worlds()["trimtab/TwoRoute-v0"]()).compute_reward(achieved, achieved, {})


def test_a_module_and_an_id_name_an_environment():
    world = find("trimtab.envs.hosted:trimtab/ContinuousSeek5-v0")
    assert (world.own, world.name) == (None, "trimtab.envs.hosted:trimtab/ContinuousSeek5-v0")
    assert world.label == "trimtab/ContinuousSeek5-v0"
    assert world.spec == find("trimtab/ContinuousSeek5-v0").spec
    with pytest.raises(UsageError, match="cannot import 'nowhere'"):
        find("nowhere:Some-v0")
