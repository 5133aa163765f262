"""On-policy agents from the command line: seeds together, exact resuming, masks, and what is refused."""

import json

import numpy as np
import pytest

import trimtab
from tests.cli.conftest import assert_same_run
from tests.worlds import Doors, Menu
from trimtab import api
from trimtab.agents import AGENTS, config_class
from trimtab.agents.ppo import Config
from trimtab.cli.train import flags_for
from trimtab.core import RunError, UsageError
from trimtab.envs.gym import spec_of
from trimtab.envs.register import register
from trimtab.policies.compose import Uniform
from trimtab.presets import ALL, find
from trimtab.training.evaluate import GymEvaluator
from trimtab.training.export import check_parity, export_onnx

SMALL = "--agent.hidden 8 --agent.n-steps 16 --agent.batch-size 16 --agent.n-epochs 2 --log csv --eval-episodes 2"
CASES = {
    "world": ("trimtab/CartPole-v1", "--num-envs 2 --seeds 0 1 --log-freq 32 --eval-freq 64", "run_s1"),
    "mujoco": ("InvertedPendulum-v5", "--log-freq 32 --eval-freq 64 --agent.memory 4 --agent.sequence 8", "run"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.thorough
def test_a_prolonged_run_is_the_whole_run(cli, tmp_path, case):
    env, flags, name = CASES[case]
    args = ["train", "ppo", "--env", env, *SMALL.split(), *flags.split(), "--checkpoint-freq", "64", "--name", "run"]
    for out, steps in (("whole", 128), ("parts", 64)):
        assert cli(*args, "--steps", steps, "--out", tmp_path / out).status == 0
    part, whole = tmp_path / "parts" / env / "ppo" / name, tmp_path / "whole" / env / "ppo" / name
    found = cli("resume", part, "--steps", 128)
    assert found.status == 0 and "resumed at step 64" in found.err
    assert_same_run(part, whole)
    assert cli("eval", part, "--episodes", 2).status == 0
    assert len(json.loads((part / "evaluation.json").read_text())["episodes"]) == 2


def test_where_an_environment_cannot_be_restored_new_episodes_begin(cli, tmp_path):
    args = f"train ppo --env CartPole-v1 {SMALL} --agent.memory 4 --agent.sequence 8 --eval-freq 0 --name run".split()
    assert cli(*args, "--steps", 32, "--checkpoint-freq", 32, "--out", tmp_path).status == 0
    found = cli("resume", tmp_path / "CartPole-v1/ppo/run", "--steps", 64)
    assert found.status == 0 and "going on with a new episode" in found.err


CONFIG = Config(hidden=(8,), n_steps=32, batch_size=32, n_epochs=2)
OPTIONS = dict(log=("csv",), quiet=True, eval_freq=0, checkpoint_freq=0, name="run", config=CONFIG)


@pytest.mark.thorough
def test_several_choices_under_a_mask(tmp_path):
    run = api.train("ppo", Menu, steps=128, num_envs=2, out=tmp_path, **OPTIONS)  # Menu asserts that masks hold
    policy = trimtab.load(run.path)
    rng = np.random.default_rng(0)
    obs = {"hunger": np.zeros((20, 1), np.float32), "action_mask": np.ones((20, 8), np.float32)}
    obs["action_mask"][:, :4] = 0
    obs["action_mask"][:, 5:7] = rng.integers(0, 2, (20, 2))
    for deterministic in (True, False):
        action, _ = policy.predict(obs, deterministic=deterministic)
        assert action.shape == (20, 2) and action.dtype.kind == "i"
        assert (action[:, 0] == 4).all() and (action[:, 1] < 3).all()
        assert obs["action_mask"][np.arange(20), 5 + action[:, 1]].all()
    single, _ = policy.predict({key: value[0] for key, value in obs.items()}, deterministic=True)
    assert single.shape == (2,)
    assert trimtab.evaluate(policy, Menu, episodes=3)[0] > 0
    pytest.importorskip("onnxruntime")
    export_onnx(policy.function(), policy.spec.zero_obs(), tmp_path / "policy.onnx")
    assert check_parity(policy.function(), tmp_path / "policy.onnx", policy.spec.zero_obs()) == 0.0


def test_a_mask_that_allows_nothing_names_environment_and_step(tmp_path):
    with pytest.raises(RunError, match="Menu gave an action_mask without a valid action at step 10"):
        api.train("ppo", lambda: Menu(closes=11), steps=64, out=tmp_path, **OPTIONS)
    register("tests/Doors", lambda: Doors(np.float32(5.0)))
    with pytest.raises(RunError, match="Doors gave an action_mask without a valid action at step 5 of a copy"):
        api.train("ppo", "tests/Doors", steps=64, out=tmp_path, **OPTIONS)
    register("tests/Shut", lambda: Doors(np.float32(0.0)))  # from the first observation of every episode
    with pytest.raises(RunError, match="Doors gave an action_mask without a valid action at step 0 of a copy"):
        api.train("ppo", "tests/Shut", steps=64, out=tmp_path, **OPTIONS)
    evaluator = GymEvaluator(lambda: Menu(closes=2), spec_of(Menu()), 0)
    with pytest.raises(RunError, match="the environment gave an action_mask without a valid action at step 2"):
        evaluator(Uniform.create(spec_of(Menu())), 1)


def test_recurrent_predict_remembers(tmp_path):
    config = Config(hidden=(8,), n_steps=16, batch_size=16, n_epochs=1, memory=4, sequence=4)
    run = api.train("ppo", "trimtab/Pendulum-v1", steps=16, out=tmp_path, **(OPTIONS | {"config": config}))
    policy, obs = trimtab.load(run.path), np.ones((2, 3), np.float32)
    first, state = policy.predict(obs, deterministic=True)
    second, later = policy.predict(obs, state, deterministic=True)
    anew, _ = policy.predict(obs, later, episode_start=np.array([True, False]), deterministic=True)
    assert (first != second).all() and anew[0] == first[0] and anew[1] != first[1]
    with pytest.raises(UsageError, match="a recurrent policy cannot be exported yet"):
        policy.function()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--agent.batch-size 12", "a rollout of 16 steps (n_steps times num_envs) cannot be cut into batches of 12"),
        ("--updates-per-step 2", "ppo makes one update a rollout"),
        ("--her future", "ppo does not replay its steps"),
        ("--agent.n-epochs 0", "n_epochs must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(cli, tmp_path, flags, says):
    args = f"train ppo --env trimtab/CartPole-v1 --num-envs 1 {SMALL} {flags}".split()
    found = cli(*args, "--out", tmp_path)
    assert found.status == 2 and says in found.err and len(found.errors) == 1
    assert not any(tmp_path.iterdir())


def test_a_data_set_is_refused(cli, tmp_path, dataset):
    found = cli("train", "ppo", "--dataset", dataset, "--offline-steps", 10, "--out", tmp_path)
    assert found.status == 2 and "ppo learns from its own steps only" in found.err


def test_presets_hold_where_nothing_else_is_said(cli, tmp_path):
    args = ["train", "ppo", "--env", "trimtab/Pendulum-v1", "--steps", "8", "--log", "csv", "--eval-freq", "0"]
    found = cli(*args, "--agent.n-steps", "8", "--agent.batch-size", "16", "--agent.n-epochs", "1", "--out", tmp_path)
    assert found.status == 0 and "preset  num-envs 8, agent.n-steps 256" in found.out
    (config,) = tmp_path.rglob("config.json")
    record = json.loads(config.read_text())
    assert (
        record["num_envs"] == 8 and record["agent_config"]["gamma"] == 0.95 and record["agent_config"]["n_steps"] == 8
    )
    assert flags_for("ppo")().agent == Config() and find("ppo", "Hopper-v5") is None
    args += ["--agent.n-steps", "8", "--agent.batch-size", "64", "--agent.n-epochs", "1", "--out", str(tmp_path)]
    args[args.index("--steps") + 1] = "128"
    found = cli(*args, "--agent.anneal-steps", "64")
    assert found.status == 0
    assert "note    nothing is learnt after --agent.anneal-steps 64; this run has 128: raise it, or 0" in found.out


def test_every_preset_fits_its_agent():
    for agent, settings in ALL.items():
        for env in settings:
            preset = find(agent, env)
            assert preset is not None
            config = config_class(AGENTS[agent])(**preset.fields)
            assert agent != "ppo" or (config.n_steps * preset.num_envs) % config.batch_size == 0


@pytest.mark.thorough
@pytest.mark.parametrize("flags", ["--agent.critic c51 --agent.dueling", "--agent.critic qr --agent.n-step 3"])
def test_dqn_on_the_host_is_resumed(cli, tmp_path, flags):
    args = f"train dqn --env CartPole-v1 --log csv --agent.hidden 8 --agent.batch-size 8 {flags}"
    args += " --agent.learning-starts 20 --agent.prioritised --agent.buffer-size 60"
    args += " --checkpoint-freq 50 --eval-freq 100 --eval-episodes 2"
    assert cli(*args.split(), "--steps", 100, "--out", tmp_path, "--name", "run").status == 0
    found = cli("resume", tmp_path / "CartPole-v1/dqn/run", "--steps", 150)
    assert found.status == 0 and "resumed at step 100" in found.err


@pytest.mark.thorough
def test_dqn_in_an_own_world_prolonged_is_the_whole_run(cli, tmp_path):
    args = (
        "train dqn --env trimtab/CartPole-v1 --num-envs 2 --seeds 0 1 --log csv --agent.hidden 8 --agent.batch-size 8"
    )
    args += " --agent.learning-starts 20 --agent.prioritised --agent.n-step 3 --agent.buffer-size 100"
    args += " --log-freq 50 --eval-freq 100 --checkpoint-freq 100 --eval-episodes 2 --name run"
    for out, steps in (("whole", 200), ("parts", 100)):
        assert cli(*args.split(), "--steps", steps, "--out", tmp_path / out).status == 0
    part, whole = (tmp_path / out / "trimtab/CartPole-v1/dqn/run_s1" for out in ("parts", "whole"))
    assert cli("resume", part, "--steps", 200).status == 0
    assert_same_run(part, whole)


@pytest.mark.thorough
def test_a_motion_is_followed_filmed_and_reported(cli, tmp_path):
    args = f"train ppo --env trimtab/QuadrupedTrot-v0 {SMALL} --num-envs 2 --steps 64 --log-freq 32 --eval-freq 0"
    args += " --agent.network linear --agent.rank 2 --agent.jacobian-weight 0.1 --agent.log-std-init -2"
    args += " --checkpoint-freq 32 --name run --video 1"
    found = cli(*args.split(), "--out", tmp_path)
    assert found.status == 0, found.err
    run = tmp_path / "trimtab/QuadrupedTrot-v0/ppo/run"
    (video,) = (run / "videos").glob("*.mp4")
    assert video.stat().st_size > 1000
    assert cli("report", run, "--out", tmp_path / "page").status == 0
    assert "<video" in (tmp_path / "page/report.html").read_text()


def test_a_motion_of_pybullets_without_pybullet(cli, tmp_path):
    found = cli("train", "ppo", "--env", "trimtab/HumanoidMimicRun-v0", "--out", tmp_path)
    assert found.status == 2 and "pip install pybullet" in found.err and len(found.errors) == 1
    listed = cli("list", "envs").out
    assert "trimtab/HumanoidMimicRun-v0" in listed and "trimtab/QuadrupedTrot-v0" in listed
