"""Agents that plan several actions at once, end to end: collecting, resuming, evaluating, predicting, exporting."""

from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab
from tests.cli.conftest import assert_same_run, metrics_of
from tests.cli.test_resume import Crash, crash_at  # noqa: F401  a fixture
from trimtab import api
from trimtab.training import checkpoint

pytestmark = pytest.mark.thorough

COMMON = "train chunky --import chunky my_package --log csv --eval-episodes 2 --log-freq 100 --checkpoint-freq 70"

CASES = {
    # Pieces of plans are left at most of the checkpoints: 70 is no multiple of 3.
    "mujoco": ("--env Hopper-v5 --eval-freq 250 --steps 400", "Hopper-v5"),
    "several": ("--env Hopper-v5 --eval-freq 250 --steps 400 --num-envs 2", "Hopper-v5"),
    "world": ("--env probe/Delayed --eval-freq 250 --steps 400 --num-envs 2", "probe/Delayed"),
    "both": (
        "--env InvertedPendulum-v5 --dataset DATA --offline-steps 150 --online-steps 250 --eval-freq 250",
        "InvertedPendulum-v5",
    ),
    "both in a world": (
        "--env my/Point --dataset POINTS --offline-steps 150 --online-steps 250 --eval-freq 250",
        "my/Point",
    ),
}


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """200 random rows with the shapes of my/Point."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    x, a = rng.uniform(-1, 1, (200, 1)), rng.uniform(-1, 1, (200, 1))
    ends = np.arange(200) % 4 == 3  # four in one episode, so that there are windows
    after = np.roll(x, -1, axis=0)
    np.savez(path, observations=x, actions=a, rewards=-((x + a) ** 2)[:, 0], terminals=ends, next_observations=after)
    return path


def command(case: str, out: Path, dataset: Path, points: Path) -> tuple[list[str], Path]:
    args, folder = CASES[case]
    words = f"{COMMON} {args} --out {out}".split()
    return [{"DATA": str(dataset), "POINTS": str(points)}.get(word, word) for word in words], out / folder / "chunky"


@pytest.mark.parametrize("case", CASES)
def test_crashed_run_ends_with_the_same_bits(cli, crash_at, tmp_path, dataset, points, case):  # noqa: F811
    args, folder = command(case, tmp_path, dataset, points)
    said = cli(*args, "--name", "whole")
    assert said.status == 0, said.err
    if case == "mujoco":  # something of a plan was left where the run will crash
        left = [checkpoint.load_arrays(c)["collector/plan/left"] for c in checkpoint.checkpoints(folder / "whole")]
        assert any(0 < n < 3 for each in left for n in each)
    for step in (100, 210, 350):
        crash_at(step)
        with pytest.raises(Crash):
            cli(*args, "--name", f"crashed_{step}")
        found = cli("resume", folder / f"crashed_{step}")
        assert found.status == 0, found.err
        assert_same_run(folder / f"crashed_{step}", folder / "whole")


def test_phases_are_told_and_learning_starts_counts_own_steps(cli, tmp_path, dataset, points):
    args, folder = command("both", tmp_path, dataset, points)
    assert cli(*args, "--name", "run", "--agent.learning-starts", "120").status == 0
    online = {}
    for line in metrics_of(folder / "run"):
        step, name, value = line.split(",")
        if name == "train/online":
            online[int(step)] = float(value)
    # From step 150 on it acts; for 120 steps nothing is learnt, so that the line at 200 tells of nothing.
    assert online == {100: 0.0, 150: 0.0, 300: 1.0, 400: 1.0}
    state = api.reopen(folder / "run")[2]
    assert int(state.size) > 300  # the data set and the steps after it
    agent = api.reopen(folder / "run")[0]
    assert agent.config.phase == "online" and int(agent.step) <= 150 + 130


def test_seeds_in_an_own_world_train_together_and_equal_solo_runs(cli, tmp_path, dataset, points):
    args, folder = command("both in a world", tmp_path, dataset, points)
    assert "together, by vmap" in cli(*args, "--name", "many", "--seeds", "0", "1").out
    assert cli(*args, "--name", "one", "--seed", "1").status == 0
    a, b = (api.load(folder / name).agent for name in ("many_s1", "one"))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_environments_that_cannot_be_restored_end_the_window(cli, crash_at, tmp_path):  # noqa: F811
    args = f"{COMMON} --env MyReach-v0 --steps 200 --eval-freq 0 --out {tmp_path} --name run".split()
    crash_at(70)
    with pytest.raises(Crash):
        cli(*args)
    run = tmp_path / "MyReach-v0/chunky/run"
    assert cli("resume", run).status == 0
    rows = api.reopen(run)[2].rows
    last = np.flatnonzero(np.asarray(rows.last)[:190]) + 1
    # Episodes have 10 steps. The one that was interrupted ended at 70 anyway: 10, 20, ... and so the next ones.
    np.testing.assert_array_equal(last, np.arange(10, 191, 10))
    assert checkpoint.meta(checkpoint.newest(run)[0])["step"] == 200


def test_an_interrupted_episode_is_cut(cli, crash_at, tmp_path):  # noqa: F811
    args = f"{COMMON} --env MyReach-v0 --steps 200 --eval-freq 0 --out {tmp_path} --name run".split()
    crash_at(75)
    with pytest.raises(Crash):
        cli(*[{"70": "75"}.get(word, word) for word in args])
    run = tmp_path / "MyReach-v0/chunky/run"
    assert cli("resume", run).status == 0
    last = np.flatnonzero(np.asarray(api.reopen(run)[2].rows.last)) + 1
    np.testing.assert_array_equal(last[:10], [10, 20, 30, 40, 50, 60, 70, 75, 85, 95])


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    """A policy that plans 3 actions of Hopper-v5."""
    import sys

    userland = str(Path(__file__).parent / "userland")
    sys.path.insert(0, userland)
    out = tmp_path_factory.mktemp("runs")
    trained = trimtab.train(
        "chunky", "Hopper-v5", steps=60, imports=["chunky"], eval_freq=0, log=["csv"], out=out, quiet=True
    )
    sys.path.remove(userland)
    return trained


def plan_of(policy, obs) -> np.ndarray:
    """All actions that the policy plans, (3, act)."""
    return np.asarray(policy.agent.policy(jnp.asarray(obs, jnp.float32), jax.random.key(0))).reshape(3, -1)


def test_predict_follows_its_plan_and_asks_again(hopper):
    policy = hopper.policy
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(4, 2, 11))
    first, state = policy.predict(obs[0], deterministic=True)
    second, state = policy.predict(obs[1], state, deterministic=True)
    for e in range(2):
        np.testing.assert_allclose([first[e], second[e]], plan_of(policy, obs[0, e])[:2], rtol=1e-5)
    # The second environment begins an episode: it plans anew, the first one goes on.
    third, state = policy.predict(obs[2], state, np.array([False, True]), deterministic=True)
    np.testing.assert_allclose(third[0], plan_of(policy, obs[0, 0])[2], rtol=1e-5)
    np.testing.assert_allclose(third[1], plan_of(policy, obs[2, 1])[0], rtol=1e-5)
    fourth, _ = policy.predict(obs[3], state, deterministic=True)
    np.testing.assert_allclose(fourth[0], plan_of(policy, obs[3, 0])[0], rtol=1e-5)
    np.testing.assert_allclose(fourth[1], plan_of(policy, obs[2, 1])[1], rtol=1e-5)
    alone, _ = policy.predict(obs[3, 0], deterministic=True)
    np.testing.assert_allclose(alone, fourth[0], rtol=1e-5)
    with pytest.raises(trimtab.core.UsageError, match="another number of environments"):
        policy.predict(obs[0, 0], state)


def test_evaluation_follows_plans(hopper):
    policy, env = hopper.policy, gymnasium.make("Hopper-v5")
    obs, _ = env.reset(seed=10_000)
    total, over, state = 0.0, False, None
    while not over:
        action, state = policy.predict(obs, state, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    env.close()
    (found,) = api.evaluate_episodes(policy, "Hopper-v5", episodes=1)
    assert found["return"] == pytest.approx(total, rel=1e-5)


def test_export_gives_the_whole_plan(cli, hopper, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    found = cli("export", hopper.path, "--out", tmp_path / "policy.onnx")
    assert found.status == 0, found.err
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"))
    obs = np.random.default_rng(1).normal(size=(5, 11)).astype(np.float32)
    (plans,) = session.run(None, {"obs": obs})
    assert plans.shape == (5, 9)
    policy = hopper.policy
    np.testing.assert_allclose(plans[2].reshape(3, 3), plan_of(policy, obs[2]), atol=1e-5)


def test_diagnose_takes_windows(cli, hopper):
    found = cli("diagnose", hopper.path)
    assert found.status == 0, found.err
    assert "dead/net" in found.out and "gradient/actor" in found.out


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("--agent.chunk 0", "chunk must be at least 1, got 0"),
        ("--agent.buffer-size 5 --num-envs 2", "buffer_size must be at least 6 (num_envs times chunk), got 5"),
    ],
)
def test_bad_sizes_are_one_line(cli, tmp_path, extra, text):
    found = cli(*f"{COMMON} --env Hopper-v5 --steps 10 --out {tmp_path} {extra}".split())
    assert found.status == 2 and len(found.errors) == 1
    assert text in found.errors[0]
    assert not list(tmp_path.iterdir())


def test_data_without_windows_is_one_line(cli, tmp_path, points):
    args = f"{COMMON} --dataset {points} --offline-steps 10 --agent.chunk 5 --out {tmp_path / 'runs'}".split()
    found = cli(*args)
    assert found.status == 2 and len(found.errors) == 1
    assert "has no 5 steps of one episode: use a smaller chunk" in found.errors[0]
    assert not (tmp_path / "runs").exists()
