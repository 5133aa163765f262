"""OGBench: names, data sets collected here in its format, and their rewards against its environments."""

import json
import sys
from itertools import product

import gymnasium
import jax
import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.data import collect
from trimtab.data.collect_ogbench import RECIPES, _at_distance, _cells, _cube_lost
from trimtab.data.collect_policy import Learner, Training
from trimtab.data.describe import describe
from trimtab.data.readers import read_recorded
from trimtab.data.write import convert
from trimtab.envs import ogbench
from trimtab.envs.gym import Collector
from trimtab.envs.make import find


@pytest.mark.parametrize(
    ("name", "task", "dataset", "env"),
    [
        ("cube-single-play-v0", False, "cube-single-play-v0", "cube-single-v0"),
        ("scene-v0", False, "scene-v0", "scene-v0"),
        ("cube-double-noisy-singletask-task2-v0", True, "cube-double-noisy-v0", "cube-double-singletask-task2-v0"),
        ("puzzle-4x4-play-singletask-v0", True, "puzzle-4x4-play-v0", "puzzle-4x4-singletask-v0"),
        ("pointmaze-medium-navigate-v0", False, "pointmaze-medium-navigate-v0", "pointmaze-medium-v0"),
    ],
)
def test_names(name, task, dataset, env):
    assert ogbench.is_name(name)
    assert (ogbench.is_task(name), ogbench.dataset_of(name), ogbench.env_id(name)) == (task, dataset, env)


def test_other_names_are_none_of_ogbench():
    for name in ("Hopper-v5", "cube", "cube-single-v1", "trimtab/TwoRoute-v0", "FetchPush-v4", "my.cube-single-v0"):
        assert not ogbench.is_name(name)
    assert ogbench.task_name("cube-single-play-v0", 2) == "cube-single-singletask-task2-v0"
    assert all(ogbench.is_name(name) for name in RECIPES)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ogbench", None)
    with pytest.raises(UsageError, match=r"OGBench is not installed .*pip install 'trimtab\[ogbench\]'"):
        find("cube-single-play-singletask-task2-v0")


MAZE = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])


def test_cells_of_a_maze():
    cells, corners = _cells(MAZE)
    assert sorted(cells) == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 3)]
    assert sorted(corners) == [(1, 1), (1, 3), (3, 1), (3, 3)]  # corners and dead ends
    assert [_at_distance(MAZE, (3, 1), n) for n in (0, 2, 6, 7)] == [[(3, 1)], [(1, 1)], [(3, 3)], []]


def test_a_cube_is_lost_behind_the_drawer_and_in_front_of_it():
    assert [_cube_lost(np.array([[0.4, *yz]])) for yz in ((0.28, 0.0), (0.29, 0.0), (-0.31, 0.07), (-0.31, 0.02))] == [
        False, True, False, True,
    ]  # fmt: skip


# With the package


@pytest.fixture(scope="module")
def mazes(tmp_path_factory):
    """A folder with three episodes in a maze."""
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    out, size = tmp_path_factory.mktemp("data"), collect.Size(3)
    collect.make("pointmaze-medium-navigate-v0", size=size, seed=1, out=out, command="test", tick=lambda *_: None)
    return out


@pytest.fixture(scope="module")
def made(mazes):
    """The same folder with two small data sets more: cubes, and one with buttons."""
    for name in ("cube-single-play-v0", "scene-play-v0"):
        collect.make(name, size=collect.Size(1), seed=1, out=mazes, command="test", tick=lambda *_: None)
    return mazes


@pytest.mark.thorough
def test_format(made):
    with np.load(made / "scene-play-v0.npz") as file:
        arrays = dict(file)
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "observations": "float32", "actions": "float32", "terminals": "bool", "qpos": "float32", "qvel": "float32",
        "button_states": "int64",
    }  # fmt: skip
    assert arrays["observations"].shape == (1001, 40) and arrays["button_states"].shape == (1001, 2)
    assert arrays["terminals"].sum() == 1 and arrays["terminals"][-1]
    assert (made / "scene-play-v0-val.npz").exists() and not list(made.glob(".*"))
    with np.load(made / "pointmaze-medium-navigate-v0.npz") as file:
        np.testing.assert_array_equal(np.flatnonzero(file["terminals"]), [1000, 2001, 3002])
        np.testing.assert_array_equal(file["observations"], file["qpos"])  # both are the state before the action
        assert np.abs(file["actions"]).max() <= 1.0


@pytest.mark.parametrize("name", ["pointmaze-medium-navigate-v0", "scene-play-v0"])
@pytest.mark.thorough
def test_ogbench_reads_it_as_we_do(made, name):
    task = ogbench.task_name(name, 1)
    with ogbench.quiet():
        env, theirs, validation = ogbench.library().make_env_and_datasets(
            name.replace("-v0", "-singletask-task1-v0"), dataset_path=str(made / f"{name}.npz")
        )
    env.close()
    ours, spec = read_recorded(made / f"{name}.npz", task)
    transition = ours.transition
    for array, key in (
        (transition.obs, "observations"), (transition.action, "actions"), (transition.next_obs, "next_observations"),
        (transition.reward, "rewards"), (transition.discount, "masks"),
    ):  # fmt: skip
        np.testing.assert_array_equal(array, theirs[key])
    # What was recorded goes on after a task was solved: windows of actions reach over it, episodes do not.
    np.testing.assert_array_equal(ours.last, theirs["terminals"] > 0)
    np.testing.assert_array_equal(ours.ended, (theirs["terminals"] > 0) | (theirs["masks"] == 0))
    assert len(validation["rewards"]) > 0
    assert spec.action_size == theirs["actions"].shape[1]


@pytest.mark.parametrize("kind", ["npz", "npy", "hdf5"])
@pytest.mark.thorough
def test_other_formats_hold_the_same_transitions(made, tmp_path, kind):
    path, task = made / "scene-play-v0.npz", "scene-singletask-task1-v0"
    before, _ = read_recorded(path, task)
    there = convert(path, kind, out=tmp_path / f"there.{kind}".removesuffix(".npy"), task=task)
    after, _ = read_recorded(there)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_maze_rewards_equal_those_of_the_environment(mazes):
    """200 rows: the environment is put into the state before the action, and asked."""
    task, path = "pointmaze-medium-singletask-task3-v0", mazes / "pointmaze-medium-navigate-v0.npz"
    recorded, _ = read_recorded(path, task)
    data = recorded.transition
    env = ogbench.make(task)
    env.reset(seed=0)
    bare = env.unwrapped
    far = np.linalg.norm(np.asarray(data.obs) - bare.cur_goal_xy, axis=1)
    rows = np.argsort(far)[:: max(1, len(far) // 2000)][:100]  # near the goal, where it is decided
    rows = np.concatenate([rows, np.random.default_rng(0).integers(len(far), size=100)])
    solved = 0
    for i in rows:
        bare.set_xy(np.asarray(data.obs[i], np.float64))
        after, reward, terminated, _, info = env.step(np.asarray(data.action[i]))
        assert reward == float(data.reward[i])
        assert terminated == (float(data.discount[i]) == 0.0) == bool(info["success"])
        np.testing.assert_allclose(after, data.next_obs[i], atol=1e-4)
        solved += terminated
    assert 0 < solved < 200
    env.close()


@pytest.mark.parametrize(("name", "task"), [("cube-single-play-v0", 1), ("scene-play-v0", 2)])
@pytest.mark.thorough
def test_manipulation_rewards_equal_those_of_the_environment(made, name, task):
    task_id, path = ogbench.task_name(name, task), made / f"{name}.npz"
    recorded, _ = read_recorded(path, task_id)
    with np.load(path) as file:
        qpos, qvel = file["qpos"], file["qvel"]
        buttons = file.get("button_states")
    env = ogbench.make(task_id)
    env.reset(seed=0)
    bare, parts = env.unwrapped, []
    solved = np.flatnonzero(np.asarray(recorded.transition.discount) == 0.0)[:100]
    for i in np.concatenate([solved, np.random.default_rng(0).integers(1000, size=200 - len(solved))]):
        state = (qpos[i].astype(float), qvel[i].astype(float))
        bare.set_state(*state, *(() if buttons is None else (buttons[i],)))
        bare.pre_step()
        bare.post_step()
        assert bare.compute_reward() == float(recorded.transition.reward[i])
        assert bool(bare._success) == (float(recorded.transition.discount[i]) == 0.0)
        parts.append(float(recorded.transition.reward[i]))
    assert min(parts) < 0
    env.close()


def test_a_longer_data_set_begins_with_a_shorter_one(mazes, tmp_path):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for episodes, seed in ((2, 1), (1, 2)):
        out = tmp_path / str(seed)
        collect.make(
            "pointmaze-medium-navigate-v0", size=collect.Size(episodes), seed=seed, out=out, tick=lambda *_: None
        )
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002  left as it was
    whole, short, other = (
        np.load(folder / "pointmaze-medium-navigate-v0.npz")["actions"]
        for folder in (mazes, tmp_path / "1", tmp_path / "2")
    )
    np.testing.assert_array_equal(short, whole[: len(short)])
    assert (other[:100] != whole[:100]).any()


def test_points_stay_out_of_the_walls_and_reach_goals(mazes):
    with np.load(mazes / "pointmaze-medium-navigate-v0.npz") as file:
        path = file["observations"]
    env = ogbench.make_bare("pointmaze-medium-v0", {})
    cells = {env.unwrapped.xy_to_ij(xy) for xy in path}
    assert all(env.unwrapped.maze_map[cell] == 0 for cell in cells)
    assert len(cells) > 15  # of 26
    env.close()


@pytest.fixture(scope="module")
def ants(tmp_path_factory):
    """An ant's data set whose legs answer a tenth of their first eight numbers; what they were asked, in order."""
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    out, asked, trained = tmp_path_factory.mktemp("ants"), [], []

    def choose(obs, timestep):
        asked.append(obs[0])
        return obs[:, :8] / 10

    def train(training, runs):
        trained.append(training)
        policy = lambda step: choose
        return Learner(runs / "seed-1_steps-700", "arithmetic", ((700, 12.5),), policy, policy, dict)

    size = collect.Size(episodes=1, steps=700)
    collect.make("antmaze-medium-explore-v0", size=size, seed=1, out=out, tick=lambda *_: None, train=train)
    explored = len(asked)
    collect.make("antmaze-medium-navigate-v0", size=size, seed=1, out=out, tick=lambda *_: None, train=train)
    return out, asked[explored:], trained


def test_an_ants_legs_feel_everything_but_their_place_and_are_told_where_to_go(ants):
    out, asked, trained = ants
    with np.load(out / "antmaze-medium-navigate-v0.npz") as file:
        rows = dict(file)
    assert rows["observations"].shape == (1001, 29) and rows["actions"].shape == (1001, 8)
    felt = np.stack(asked[:1001])  # the validation episode comes after
    np.testing.assert_allclose(felt[:, :27], np.concatenate([rows["qpos"][:, 2:], rows["qvel"]], 1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(felt[:, 27:], axis=1), 1.0, atol=1e-4)
    noise = rows["actions"] - np.clip(felt[:, :8] / 10, -1, 1)
    assert np.std(noise[np.abs(rows["actions"]) < 1]) == pytest.approx(0.2, abs=0.01)
    # The ant was put down in the middle of a free cell, give or take, and told to walk to a neighbour of it.
    env = ogbench.make_bare("antmaze-medium-v0", {})
    cell = env.unwrapped.xy_to_ij(rows["qpos"][0, :2])
    there = env.unwrapped.xy_to_ij(rows["qpos"][0, :2] + 4.0 * felt[0, 27:])
    assert env.unwrapped.maze_map[cell] == env.unwrapped.maze_map[there] == 0
    env.close()
    legs = Training("trimtab.envs.ogbench:ant_in_the_plane", 700, 1, 70, 1e-4, -4.0)
    assert trained == [legs, legs]
    record = json.loads((out / "antmaze-medium-navigate-v0.json").read_text())
    assert record["walker"] == {"agent": "arithmetic", "run": "seed-1_steps-700", "step": 700, "mean_return": 12.5}


def test_exploring_is_noise_around_a_direction_that_changes_every_ten_steps(ants):
    with np.load(ants[0] / "antmaze-medium-explore-v0.npz") as file:
        assert file["actions"].shape == (501, 8) and 0.2 < (np.abs(file["actions"]) == 1.0).mean() < 0.45  # N(0, 1)
    with pytest.raises(UsageError, match=r"antmaze-medium-explore-v0 has no --rows"):
        collect.make("antmaze-medium-explore-v0", size=collect.Size(rows=5), out=ants[0], tick=lambda *_: None)


def test_a_point_that_explores_gets_into_corners_that_one_with_a_goal_leaves_out(mazes, tmp_path):
    """Cells are 4 wide, and a point touches a wall 1.34 from the middle of its cell. Ours (OGBench: of ants only)."""
    name = "pointmaze-medium-explore-v0"
    collect.make(name, size=collect.Size(episodes=6), seed=1, out=tmp_path, tick=lambda *_: None)
    with np.load(tmp_path / f"{name}.npz") as file, np.load(mazes / "pointmaze-medium-navigate-v0.npz") as other:
        rows, steered = dict(file), other["observations"]
    assert rows["observations"].shape == rows["actions"].shape == (6 * 501, 2)
    env = ogbench.make_bare("pointmaze-medium-v0", {})
    wall, sides = env.unwrapped.maze_map == 1, list(product((-1, 1), (-1, 1)))
    env.close()
    free = [(i, j, di, dj) for i, j in np.argwhere(~wall) for di, dj in sides]
    corners = [
        (4 * j - 4 + 1.34 * dj, 4 * i - 4 + 1.34 * di) for i, j, di, dj in free if wall[i + di, j] and wall[i, j + dj]
    ]
    assert len(corners) == 17
    near = lambda xy: np.linalg.norm(xy[:, None] - np.array(corners), axis=-1).min()
    assert near(rows["observations"]) < 0.1 and near(steered) > 0.6
    # Ten steps share a direction: half of them tell the other half, and nothing of the next ten.
    halves = rows["actions"].reshape(6, 501, 2)[:, :500].reshape(-1, 2, 5, 2).mean(2)
    unit = halves / np.linalg.norm(halves, axis=-1, keepdims=True)
    together, apart = (unit[:, 0] * unit[:, 1]).sum(-1), (unit[:-1, 1] * unit[1:, 0]).sum(-1)
    assert together.mean() > 0.6 and abs(apart.mean()) < 0.15


def test_an_ant_in_the_plane_is_rewarded_for_the_way_it_was_told():
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    world = find("trimtab.envs.ogbench:ant_in_the_plane")
    assert world.spec.obs.shape == (29,) and world.spec.action_size == 8
    one, two = world.make(None), world.make(None)
    np.testing.assert_array_equal(one.reset(seed=3)[0], two.reset(seed=3)[0])
    told, ways = one.unwrapped.data, []
    for step in range(101):
        before = told.qpos[:2].copy()
        action = np.full(8, 0.3 * np.sin(step), np.float32)
        obs, reward, ended, *_ = one.step(action)
        np.testing.assert_array_equal(two.step(action)[0], obs)
        assert not ended
        if step:
            assert reward == pytest.approx(float((told.qpos[:2] - before) @ ways[-1]), abs=1e-9)
        ways.append(obs[27:])
    assert (ways[98] == ways[0]).all() and (ways[99] != ways[0]).any()  # another direction after 100 steps
    one.close(), two.close()


def test_equal_seeds_give_equal_episodes_whatever_else_draws():
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    world = find("pointmaze-medium-navigate-singletask-task1-v0")
    one, two = world.make(None), world.make(None)
    first = [one.reset(seed=3)[0], one.reset()[0]]
    np.random.normal(size=10)  # noqa: NPY002
    second = [two.reset(seed=3)[0], two.reset()[0]]
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()
    collector = Collector(lambda: world.make(None), 1, world.spec, 0)
    assert not collector.exact  # its generators are not among what a checkpoint holds
    for env in (one, two, collector):
        env.close()


def test_success_ends_an_episode_one_step_after_arrival():
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    env = find("pointmaze-medium-navigate-singletask-task1-v0").make(None)
    env.reset(seed=0)
    env.unwrapped.set_xy(np.add(env.unwrapped.cur_goal_xy, [1.1, 0.0]))
    _, reward, terminated, _, info = env.step(np.array([-1.0, 0.0]))
    assert (reward, terminated, info["success"]) == (-1.0, False, 0.0)
    _, reward, terminated, _, info = env.step(np.array([-1.0, 0.0]))
    assert (reward, terminated, info["success"]) == (0.0, True, 1.0)
    env.close()


@pytest.mark.thorough
def test_what_does_not_fit_is_one_line(made, tmp_path):
    cube = made / "cube-single-play-v0.npz"
    for task, text in (
        (None, r"holds no rewards: name a task with --env, such as cube-single-play-singletask-task1-v0"),
        ("cube-single-v0", r"holds no rewards: name a task"),
        ("cube-double-singletask-task1-v0", r"has qpos of 28 numbers, the data set has 21"),
    ):
        with pytest.raises(UsageError, match=text):
            read_recorded(cube, task)
    with pytest.raises(UsageError, match=r"no environment 'cube-singel-v0': did you mean 'cube-single-v0'\?"):
        find("cube-singel-v0")
    with np.load(made / "scene-play-v0.npz") as file:
        np.savez(tmp_path / "a.npz", **{name: array for name, array in file.items() if name != "button_states"})
    with pytest.raises(UsageError, match=r"lacks 'button_states', which the rewards of scene"):
        read_recorded(tmp_path / "a.npz", "scene-play-singletask-v0")


@pytest.mark.thorough
def test_description(made):
    lines = describe(made / "pointmaze-medium-navigate-v0.npz")
    assert "rows        3,003" in lines and "episodes    3" in lines
    assert len([line for line in lines if line.startswith("task ")]) == 5
    shares = [int(line.split(", ")[1].split("%")[0]) for line in lines if line.startswith("task ")]
    assert set(shares) <= {0, 33, 67, 100} and max(shares) > 0


def test_gymnasium_knows_the_environments_after_use():
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    ogbench.library()
    assert all(ogbench.env_id(name) in gymnasium.registry for name in RECIPES)
