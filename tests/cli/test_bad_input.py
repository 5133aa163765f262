"""Bad input: one clear line on stderr, exit 2 for a wrong request or 1 for a run that failed, and nothing is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import ONLINE, Answer, answer, assert_same_run, contents, edit_config, environment, spawn
from trimtab.cli.main import main
from trimtab.run.folder import Run
from trimtab.training import checkpoint

PROBE = f"train sac --env probe/Both {ONLINE}"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A folder of runs with one that has finished, which must outlive all that happens here."""
    folder = tmp_path_factory.mktemp("runs")
    assert main([*PROBE.split(), "--steps", "200", "--eval-freq", "100", "--name", "good", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def good(out) -> Path:
    return out / "probe/Both/sac/good"


@pytest.fixture(autouse=True)
def untouched(good):
    """Earlier runs are as they were after every test."""
    before = contents(good)
    yield
    assert contents(good) == before


def assert_one_line(found: Answer, status: int, *texts: str) -> None:
    """Status `status`, and one line on stderr that holds all `texts`."""
    assert found.status == status, found
    assert len(found.errors) == 1, found.err
    assert found.errors[0].startswith("trimtab: ")
    for text in texts:
        assert text in found.errors[0]
    assert "Traceback" not in found.out + found.err


def arrays(**changes) -> dict[str, np.ndarray]:
    """A data set for InvertedPendulum: 20 rows of zeros."""
    usual = dict(
        observations=np.zeros((20, 4)),
        actions=np.zeros((20, 1)),
        rewards=np.zeros(20),
        terminals=np.zeros(20, bool),
        timeouts=np.zeros(20, bool),
    )
    return usual | changes


USAGE = [
    # What is named wrongly: the nearest right one is proposed.
    ("trian sac", "unknown command 'trian': did you mean 'train'?"),
    ("fly", "unknown command 'fly': choose one of"),
    ("train", "name an agent:"),
    ("train saq --env probe/Both", "unknown agent 'saq': did you mean 'sac'?"),
    ("train zzzz --env probe/Both", "unknown agent 'zzzz': choose one of bc, cal-ql, cql, ddpg"),
    ("train --env probe/Both", "the agent comes first"),
    ("train sac --env Hoper-v5", "unknown environment 'Hoper-v5': did you mean 'Hopper-v5'?"),
    ("train sac --env probe/Bot", "did you mean 'probe/Both'?"),
    ("train sac --env probe/Both --stepz 3", "--stepz", "--steps"),
    ("train sac --env probe/Both --agent.hiden 3", "--agent.hiden", "--agent.hidden"),
    ("train sac --env probe/Both --steps many", "--steps", "many"),
    ("train sac --env probe/Both --device tpu", "unknown device 'tpu'"),
    ("train sac --env probe/Both --log wandbb", "unknown logger 'wandbb'"),
    ("train sac --env probe/Both --import no_such_module", "--import no_such_module"),
    ("train sac --env no_such_module:make", "cannot import the environment factory 'no_such_module:make'"),
    ("train sac --env my_package:mak", "cannot import the environment factory 'my_package:mak'"),
    ("list agentz", "agentz"),
    # What does not go together.
    ("train sac", "name an environment with --env ID, or a data set with --dataset PATH"),
    ("train sac --env probe/Both --offline-steps 5", "need a --dataset"),
    ("train sac --env probe/Both --online-steps 5", "need a --dataset"),
    ("train sac --env probe/Both --seeds 1 1", "seeds must differ"),
    ("train sac --env probe/Both --probes rollout-grad", "needs an agent with a flow policy"),
    ("train sac --env probe/Both --updates-per-step 2", "own worlds make one update a vector step"),
    (
        "train sac --env probe/Both --num-envs 50 --agent.buffer-size 20",
        "buffer_size must be at least 50 (num_envs), got 20",
    ),
    # Spaces that are not supported.
    ("train sac --env CartPole-v1", "sac needs continuous actions"),
    ("train td3 --env CartPole-v1", "td3 needs continuous actions"),
    ("train sac --env my_package:make_image", "is an image of shape (64, 64, 3), which is not supported"),
    ("train sac --env FrozenLake-v1", "the observation space Discrete is not supported"),
    ("train sac --env my_package:make_nothing", "returned NoneType, not a gymnasium.Env"),
    ("train sac --env my_package:make_impossible", "OSError: the simulator is not installed"),
    # Numbers out of range.
    ("train sac --env probe/Both --steps 0", "steps must be positive, got 0"),
    ("train sac --env probe/Both --steps -5", "steps must be positive, got -5"),
    ("train sac --env probe/Both --num-envs 0", "num-envs must be positive, got 0"),
    ("train sac --env probe/Both --eval-freq -1", "eval-freq must not be negative, got -1"),
    ("train sac --env probe/Both --eval-episodes 0", "eval-episodes must be positive, got 0"),
    ("train sac --env probe/Both --log-freq 0", "log-freq must be positive, got 0"),
    ("train sac --env probe/Both --checkpoint-freq -1", "checkpoint-freq must not be negative, got -1"),
    ("train sac --env probe/Both --updates-per-step 0", "updates-per-step must be positive, got 0"),
    ("train sac --env probe/Both --updates-per-step nan", "updates-per-step must be positive, got nan"),
    ("train sac --env probe/Both --video -1", "video must not be negative, got -1"),
    ("train sac --env probe/Both --agent.buffer-size 0", "buffer_size must be at least 1 (num_envs), got 0"),
    ("train sac --env probe/Both --agent.batch-size 0", "batch_size must be at least 1, got 0"),
    ("train sac --env probe/Both --agent.batch-size -3", "batch_size must be at least 1, got -3"),
    ("train sac --env probe/Both --agent.init-ent-coef 0", "init_ent_coef must be positive, got 0.0"),
    ("train sac --env probe/Both --agent.critic-members 0", "critic_members must be at least 1, got 0"),
    ("train sac --env probe/Both --agent.gamma 1.5", "gamma must be between 0 and 1, got 1.5"),
    ("train sac --env probe/Both --agent.learning-rate nan", "learning_rate must be positive, got nan"),
    (
        "train reengage --env trimtab/DriveSeekSmall-v0",
        "reengage needs one goal, but here goals are sets: choose reengage-sets",
    ),
    ("train sac --env probe/Both --agent.hidden 8 0", "hidden widths must be at least 1, got 8 0"),
    ("train sac --env probe/Both --agent.critic-norm batch", "batch"),
    ("train td3 --env probe/Both --agent.policy-delay 0", "policy_delay must be at least 1, got 0"),
    ("train td3-bc --dataset GOOD_DATA --offline-steps 10 --agent.policy-delay 0", "policy_delay must be at least 1"),
    ("train rebrac --dataset GOOD_DATA --offline-steps 10 --agent.policy-delay 0", "policy_delay must be at least 1"),
    ("train fac --dataset GOOD_DATA --offline-steps 10 --agent.proxy-steps -3", "proxy_steps must be at least 1"),
    ("train iql --dataset GOOD_DATA", "say how long to learn from the data set: add --offline-steps N"),
    ("train iql --dataset GOOD_DATA --offline-steps -1", "offline-steps must be positive, got -1"),
    ("train iql --dataset GOOD_DATA --offline-steps 10 --online-steps -1", "online-steps must not be negative, got -1"),
    ("train iql --dataset GOOD_DATA --offline-steps 10 --online-steps 10", "--online-steps needs an environment"),
    ("train iql --dataset GOOD_DATA --offline-steps 10 --env Pendulum-v1", "Pendulum-v1 has obs 3", "has 4"),
    ("train iql --dataset GOOD_DATA --offline-steps 10 --online-steps 10 --env probe/Both", "probe/Both has obs 1"),
    ("train iql --dataset GOOD_DATA --offline-steps 10 --sampling symmetric", "add --dataset and --online-steps"),
    ("train sac --env probe/Both --sampling symmetric", "add --dataset and --online-steps"),
    ("train iql --dataset GOOD_DATA --offline-steps 10 --steps 20", "--steps is for online training alone"),
    ("train fac --dataset GOOD_DATA --offline-steps 10 --agent.phase online", "leave --agent.phase out"),
    ("train fql --dataset GOOD_DATA --offline-steps 10 --agent.alpha -1", "alpha must not be negative, got -1"),
    ("train fac --dataset GOOD_DATA --offline-steps 10 --agent.lam nan", "lam must not be negative, got nan"),
    ("train cal-ql --dataset GOOD_DATA --offline-steps 10 --agent.cut-value nan", "cut_value must be finite, got nan"),
    ("train cal-ql --dataset GOOD_DATA --offline-steps 10 --agent.gamma 1", "gamma 1 bounds no value after a cut"),
    ("train cal-ql --dataset GOOD_DATA --offline-steps 10 --dataset-fraction 0.5", "learns from successive steps"),
    ("train qc-fql --dataset GOOD_DATA --offline-steps 10 --dataset-fraction 0.5", "learns from successive steps"),
    (
        "train rlpd --dataset GOOD_DATA --env InvertedPendulum-v5 --online-steps 100 --sampling symmetric",
        "learning_starts 5,000 leaves no update in 100 online steps: lower --agent.learning-starts",
    ),
    ("train sac --env probe/Both --sampling half", "--sampling", "half"),
    ("train iql --dataset nowhere.npz --offline-steps 10", "no data set at"),
    # Runs that are none, and what runs cannot do.
    ("resume nowhere", "nowhere does not exist"),
    ("resume NO_RUN", "is not a run folder (it has no config.json)"),
    ("resume GOOD --steps 10", "--steps 10 is less than the 200 of the run"),
    ("eval nowhere", "nowhere does not exist"),
    ("eval NO_RUN", "is not a run folder"),
    ("eval GOOD --episodes 0", "episodes must be positive, got 0"),
    ("eval GOOD --env Pendulum-v1", "Pendulum-v1 has obs 3, but the agent or data set has 1"),
    ("eval GOOD --checkpoint worst", "worst"),
    ("eval GOOD --video -1", "video must not be negative, got -1"),
    ("export NO_RUN", "is not a run folder"),
    ("export GOOD --format pickle", "pickle"),
    ("diagnose NO_RUN", "is not a run folder"),
    ("diagnose GOOD --probes gradients color", "unknown probe 'color': choose from"),
    ("diagnose GOOD --batches 0", "batches must be positive, got 0"),
    ("report", "name"),
    ("report nowhere", "nowhere"),
    ("report NO_RUN", "NO_RUN"),
]


@pytest.mark.parametrize("case", USAGE, ids=[case[0] for case in USAGE])
def test_wrong_request(cli, out, good, dataset, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "NO_RUN").mkdir()
    (tmp_path / "NO_RUN" / "notes.txt").touch()
    line, *texts = case
    args = [{"GOOD": str(good), "GOOD_DATA": str(dataset)}.get(word, word) for word in line.split()]
    before = sorted(out.rglob("*"))
    found = cli(*args, *(["--out", out] if args[0] == "train" and len(args) > 1 else []))
    assert_one_line(found, 2, *texts)
    assert sorted(out.rglob("*")) == before  # no folder was made for what cannot be
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["NO_RUN", "notes.txt"]


def test_no_command_prints_the_usage(cli):
    found = cli()
    assert found.status == 2 and "usage: trimtab COMMAND" in found.out


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"observations": np.full((20, 4), np.nan)}, "observations[0, 0] is nan"),
        ({"actions": np.full((20, 1), 3.0)}, "actions[0, 0] is outside [-1, 1]"),
        ({"rewards": np.zeros(19)}, "rewards has 19 rows, observations has 20"),
        ({"rewards": np.zeros((20, 1))}, "rewards has shape (20, 1)"),
        ({"actions": np.zeros((20, 2))}, "InvertedPendulum-v5 has action_size 1, but the agent or data set has 2"),
    ],
)
def test_bad_data_set(cli, out, tmp_path, changes, text):
    np.savez(tmp_path / "data.npz", **arrays(**changes))
    before = sorted(out.rglob("*"))
    found = cli(
        *f"train iql --dataset {tmp_path / 'data.npz'} --env InvertedPendulum-v5 --offline-steps 10 --out {out}".split()
    )
    assert_one_line(found, 2, text)
    assert sorted(out.rglob("*")) == before


def test_no_gpu(cli, out):
    import jax

    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU")
    assert_one_line(cli(*PROBE.split(), "--steps", "10", "--out", out, "--device", "gpu"), 2, "no GPU is visible")


def test_name_that_is_taken(cli, out, good):
    found = cli(*PROBE.split(), "--steps", "10", "--name", "good", "--out", out)
    assert_one_line(found, 2, f"{good} holds a run already", f"trimtab resume {good}")


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_out_that_cannot_be_written(cli, tmp_path, below):
    (tmp_path / "file").write_text("in the way")
    found = cli(*PROBE.split(), "--steps", "10", "--out", tmp_path / below)
    assert_one_line(found, 1, "cannot write the run folder", "choose another --out")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("make_nan_reward", "gave a non-finite reward at step"),
        ("make_nan_obs", "gave a non-finite observation at step"),
        ("make_raising", "RuntimeError: the arm fell off"),
    ],
)
def test_environment_that_breaks(cli, tmp_path, factory, text):
    args = f"train sac --env my_package:{factory} {ONLINE} --steps 100 --agent.learning-starts 2 --eval-freq 0"
    found = cli(*args.split(), "--out", tmp_path, "--name", "broken")
    run = tmp_path / f"my_package.{factory}" / "sac" / "broken"
    # Steps count from 0: the fifth step of the first episode is step 4. What was learnt before is kept.
    assert_one_line(found, 1, text, "at step 4", f"progress up to step 4 is saved in {run}")
    newest, _ = checkpoint.newest(run)
    assert newest is not None and newest.name == "step_4"
    assert not (run / "DONE").exists()
    assert cli("eval", run, "--env", "my_package:make", "--episodes", "1").status == 0
    found = cli("resume", run)  # a new episode: four good steps more
    assert found.status == 1
    assert "at step 8" in found.errors[-1] and text in found.errors[-1]


def test_environment_that_breaks_in_evaluation(cli, tmp_path):
    args = f"train sac --env my_package:make_raising {ONLINE} --steps 100 --eval-freq 3"
    found = cli(*args.split(), "--out", tmp_path, "--name", "broken")
    assert_one_line(found, 1, "raised in evaluation", "RuntimeError: the arm fell off")
    found = cli("eval", tmp_path / "my_package.make_raising/sac/broken", "--episodes", "2")
    assert_one_line(found, 1, "raised in evaluation", "RuntimeError: the arm fell off")


@pytest.mark.parametrize("frequencies", ["--log-freq 200 --checkpoint-freq 50", "--log-freq 50 --checkpoint-freq 200"])
def test_diverged_training_keeps_the_last_good_checkpoint(cli, tmp_path, monkeypatch, frequencies):
    args = f"train sac --env probe/Both {ONLINE} --eval-freq 0 {frequencies} --out {tmp_path} --name wild"
    assert cli(*args.split(), "--steps", "200").status == 0
    run = tmp_path / "probe/Both/sac/wild"
    good = [path.name for path in checkpoint.checkpoints(run)]
    # From the next update on nothing is a number any more.
    config = json.loads((run / "config.json").read_text())["agent_config"]
    edit_config(run, agent_config=config | {"learning_rate": 1e30})
    found = cli("resume", run, "--steps", "2000")
    assert found.status == 1 and len(found.errors) == 2
    assert found.errors[0] == "resumed at step 200"
    assert "training diverged" in found.errors[1] and "is not finite before step" in found.errors[1]
    assert str(run / "checkpoints") in found.errors[1]
    assert [path.name for path in checkpoint.checkpoints(run)] == good
    assert not (run / "DONE").exists()


@pytest.fixture
def stopped(good, tmp_path) -> Path:
    """A copy of the good run without its end."""
    run = tmp_path / "probe/Both/sac/stopped"
    shutil.copytree(good, run)
    (run / "DONE").unlink()
    return run


def test_checkpoint_of_another_layout(cli, stopped):
    config = json.loads((stopped / "config.json").read_text())["agent_config"]
    edit_config(stopped, agent_config=config | {"hidden": [8, 9]})
    before = contents(stopped)
    for command in ("resume", "eval", "export", "diagnose"):
        found = cli(command, stopped)
        assert_one_line(found, 1, "does not fit its config", "layers[1].weight: float32", "(2, 8, 9)", "(2, 8, 8)")
    assert contents(stopped) == before


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"agent": "sacc"}, "unknown agent 'sacc': did you mean 'sac'?"),
        ({"env": "probe/Bot"}, "did you mean 'probe/Both'?"),
        ({"agent_config": {"hiden": [8, 8]}}, "config.json has 'hiden', which sac does not know"),
        ({"format": 99}, "was written by another version of Trimtab"),
    ],
)
def test_config_that_does_not_fit(cli, stopped, changes, text):
    edit_config(stopped, **changes)
    assert_one_line(cli("resume", stopped), 2, text)


@pytest.mark.parametrize("content", ["", '{"format": 1, "agent"', "\xff\xfe", "[]", "{}"])
def test_damaged_config(cli, stopped, content):
    (stopped / "config.json").write_text(content, encoding="latin-1")
    for command in ("resume", "eval", "export", "diagnose"):
        assert_one_line(cli(command, stopped), 2, str(stopped))


def test_nothing_to_load(cli, stopped):
    shutil.rmtree(stopped / "final")
    shutil.rmtree(stopped / "checkpoints")
    for command in ("eval", "export", "diagnose"):
        assert_one_line(cli(command, stopped), 2, "has no checkpoint yet", f"trimtab resume {stopped}")


def test_damaged_final_agent(cli, stopped):
    file = stopped / "final" / "agent.eqx"
    file.write_bytes(file.read_bytes()[:-10])
    assert_one_line(cli("eval", stopped), 2, "cannot load", "agent.eqx is truncated", "--checkpoint last")
    assert cli("eval", stopped, "--checkpoint", "last", "--episodes", "2").status == 0


def test_run_folder_that_is_held(cli, stopped):
    """In one process; tests/cli/test_resume.py does it with two."""
    before = contents(stopped)
    run = Run.open(stopped)
    try:
        assert_one_line(cli("resume", stopped), 1, f"another process is writing {stopped}")
    finally:
        run.close()
    assert contents(stopped) == before


# A process in which no file may grow beyond a size, as if the disk were full. It trains once before, so that everything
# is compiled and the compile cache needs no room.
FULL = """
import resource, sys
from trimtab.cli.main import main
size, warm = int(sys.argv[1]), sys.argv[2].split()
assert main(warm) == 0
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("size", "flags", "text"),
    [
        (18_000, "--checkpoint-freq 200", "cannot write the checkpoint"),
        (4_000, "--checkpoint-freq 0 --log-freq 50", "metrics.csv"),
        (300, "", "cannot write the run folder"),
    ],
    ids=["checkpoint", "metrics", "config"],
)
def test_full_disk(cli, tmp_path, size, flags, text):
    args = f"train sac --env probe/Both {ONLINE} --steps 1000 --eval-freq 0 {flags} --out {tmp_path}"
    command = [sys.executable, "-c", FULL, str(size), f"{args} --name before", *args.split(), "--name", "full"]
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    run = tmp_path / "probe/Both/sac/full"
    assert_one_line(Answer(found.returncode, found.stdout, found.stderr), 1, text)
    assert (run.with_name("before") / "DONE").exists()
    assert not (run / "DONE").exists()
    if text == "cannot write the checkpoint":
        assert "earlier checkpoints are untouched" in found.stderr
        kept = checkpoint.checkpoints(run)
        assert kept and all(checkpoint.damage(folder) is None for folder in kept)
        assert not list((run / "checkpoints").glob(".*"))  # the half-written one is gone
        # Room has been made: the run goes on.
        resumed = cli("resume", run)
        assert resumed.status == 0, resumed.err
        assert_same_run(run, run.with_name("before"))


def test_seeds_one_after_the_other_end_at_the_first_that_breaks(cli, tmp_path):
    args = f"train sac --env my_package:make_raising {ONLINE} --steps 100 --eval-freq 0 --seeds 0 1"
    found = cli(*args.split(), "--out", tmp_path, "--name", "x")
    assert_one_line(found, 1, "the arm fell off")
    assert [path.name for path in (tmp_path / "my_package.make_raising/sac").iterdir()] == ["x_s0"]


def test_debug_shows_the_traceback(out, good):
    from trimtab.core import UsageError

    with pytest.raises(UsageError, match="unknown agent"):
        main(["train", "saq", "--env", "probe/Both", "--debug"])


def test_a_command_in_a_process_of_its_own_prints_one_line(tmp_path):
    found = answer(spawn(["train", "sac", "--env", "CartPole-v1", "--out", tmp_path / "runs"]))
    assert_one_line(found, 2, "sac needs continuous actions")
    assert not (tmp_path / "runs").exists()


def test_report_on_empty_and_mixed_folders(cli, good, tmp_path):
    empty, mixed = tmp_path / "empty", tmp_path / "mixed"
    empty.mkdir()
    assert_one_line(cli("report", empty, "--out", tmp_path / "page"), 2, str(empty))
    assert_one_line(cli("report", good, empty, "--out", tmp_path / "page"), 2, str(empty))
    assert not (tmp_path / "page").exists()
    # A folder that holds a run beside other things, and a run that has not logged yet.
    shutil.copytree(good, mixed / "run")
    (mixed / "notes").mkdir()
    (mixed / "readme.txt").write_text("notes")
    (mixed / "young").mkdir()
    shutil.copy(good / "config.json", mixed / "young")
    found = cli("report", mixed, "--out", tmp_path / "page")
    assert found.status == 0, found.err
    assert (tmp_path / "page" / "report.html").exists()
    (tmp_path / "blocked").write_text("in the way")
    found = cli("report", good, "--out", tmp_path / "blocked" / "page")
    assert_one_line(found, 1, str(tmp_path / "blocked"))


def test_report_on_a_damaged_run(cli, stopped):
    (stopped / "config.json").write_text("{")
    assert_one_line(cli("report", stopped, "--out", stopped / "page"), 2, str(stopped))
