"""The probe `seem` from the command line: as training goes on, when it stops, when it is resumed, and afterwards."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trimtab
from tests.cli.conftest import ONLINE, TINY, metrics_of
from tests.cli.test_bad_input import assert_one_line
from trimtab.agents import sac
from trimtab.batches import Transition
from trimtab.cli.diagnose import largest_reward
from trimtab.cli.flags import parse
from trimtab.cli.train import flags_for
from trimtab.data.buffer import Buffer
from trimtab.data.sources import OfflineSource
from trimtab.papers.recipe import Job, curve, flags, metrics, run_jobs
from trimtab.papers.seem import antmaze, control, data_name, subsets
from trimtab.training import checkpoint

EVERY = "--probes seem --probe-freq 20 --log-freq 20 --checkpoint-freq 20"

DIVERGES = (
    "--agent.hidden 32 32 --agent.tau 1 --agent.learning-rate 0.003 --agent.batch-size 32 --offline-steps 300 "
    "--probes seem --probe-freq 30 --log csv"
)
"""DDPG on one walk in the plane, with targets that are the networks themselves."""


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    """64 steps in compass directions without any reward: the true values are 0."""
    rng = np.random.default_rng(0)
    angle = rng.integers(0, 8, 64) * np.pi / 4
    actions = np.stack([np.cos(angle), np.sin(angle)], 1)
    states = rng.random(2) + np.cumsum(np.vstack([np.zeros((1, 2)), 0.1 * actions[:-1]]), 0)
    ends = np.arange(64) == 63
    path = tmp_path_factory.mktemp("data") / "walk.npz"
    np.savez(path, observations=states, actions=actions, rewards=np.zeros(64), terminals=~ends & ends, timeouts=ends)
    return path


def logged(run: Path) -> dict[int, dict[str, float]]:
    """Step -> the values of the probe."""
    found: dict[int, dict[str, float]] = {}
    with (run / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            if row["name"].startswith("diagnostics/seem_"):
                name = row["name"].removeprefix("diagnostics/seem_")
                found.setdefault(int(row["step"]), {})[name] = float(row["value"])
    return found


def offline(cli, dataset: Path, out: Path, *words: str, steps: int = 60):
    args = f"train td3 --dataset {dataset} --offline-steps {steps} {TINY} {EVERY} --out {out}"
    return cli(*args.split(), *" ".join(words).split())


@pytest.mark.thorough
def test_each_look_is_logged_without_an_environment(cli, dataset, tmp_path):
    assert offline(cli, dataset, tmp_path, "--name x").status == 0
    looks = logged(tmp_path / "random/td3/x")
    assert list(looks) == [20, 40, 60]
    assert {"value", "normalised", "q_mean", "q_max", "params_norm", "diverging"} == looks[20].keys()
    assert looks[60].keys() == looks[20].keys() | {"ntk_cosine", "params_cosine", "gradient_cosine", "growth"}
    assert 0.9 < looks[60]["params_cosine"] <= 1.0 and looks[60]["diverging"] == 0


def test_a_prolonged_run_looks_as_if_nothing_had_stopped_it(cli, dataset, tmp_path):
    assert offline(cli, dataset, tmp_path, "--name whole", steps=80).status == 0
    assert offline(cli, dataset, tmp_path, "--name parts", steps=40).status == 0
    whole, parts = tmp_path / "random/td3/whole", tmp_path / "random/td3/parts"
    assert cli("resume", parts, "--steps", 80).status == 0
    assert metrics_of(parts) == metrics_of(whole) and list(logged(parts)) == [20, 40, 60, 80]


@pytest.mark.thorough
def test_an_alarm_is_said_once_or_ends_the_run(cli, walk, tmp_path):
    command = f"train ddpg --dataset {walk} {DIVERGES} --out {tmp_path}"
    warned = cli(*command.split(), "--name", "warn")
    assert warned.status == 0, warned.err
    looks = logged(tmp_path / "walk/ddpg/warn")
    flagged = [step for step, look in looks.items() if look["diverging"]]
    assert len(flagged) > 1 and looks[flagged[0]]["normalised"] > 0.02 < looks[flagged[0] - 30]["normalised"]
    said = [line for line in warned.errors if "values feed on themselves" in line]
    assert len(said) == 1 and said[0].startswith(f"step {flagged[0]}: values feed on themselves: normalised SEEM")
    assert (tmp_path / "walk/ddpg/warn/DONE").exists()

    for seeds, runs in (("--seed 0", ("stop",)), ("--seeds 0 1", ("stop_s0", "stop_s1"))):
        stopped = cli(*command.split(), *seeds.split(), "--name", "stop", "--on-diverge", "stop")
        assert stopped.status == 1
        assert stopped.errors[-1].startswith("trimtab: training diverged: ")
        assert "values feed on themselves" in stopped.errors[-1] and "critic-norm layer" in stopped.errors[-1]
        run = tmp_path / "walk/ddpg" / runs[0]
        assert not (run / "DONE").exists() and max(logged(run)) == flagged[0]
        assert checkpoint.checkpoints(run)[-1].name == f"step_{flagged[0]}"
        assert trimtab.load(run).info["checkpoint"] == f"step_{flagged[0]}"
    # The other seed went on until its own alarm.
    other = logged(tmp_path / "walk/ddpg/stop_s1")
    assert other[max(other)]["diverging"] or max(other) == 300


@pytest.mark.thorough
def test_diagnosis_and_report_of_a_diverging_run(cli, walk, tmp_path):
    """The verdict of the reading table, from the newest checkpoint, the one before, and what was logged."""
    command = f"train ddpg --dataset {walk} {DIVERGES} --checkpoint-freq 60 --out {tmp_path} --name x"
    assert cli(*command.split()).status == 0
    run = tmp_path / "walk/ddpg/x"
    said = cli("diagnose", run, "--probes", "seem")
    assert said.status == 0, said.err
    assert "bad   seem/normalised" in said.out and "will leave any bound" in said.out
    assert "bad   seem/growth" in said.out and "Adam only scales the network up" in said.out
    found = json.loads((run / "diagnose.json").read_text())
    assert found["values"]["seem/normalised"] == pytest.approx(logged(run)[300]["normalised"], rel=1e-3)
    assert found["values"]["seem/ntk_cosine"] > 0.99
    assert cli("report", run, "--out", tmp_path / "page").status == 0
    assert "Early warning: normalised SEEM" in (tmp_path / "page/report.html").read_text()
    # A run that no probe watched has the same verdict by its two checkpoints alone.
    again = command.replace("--probes seem --probe-freq 30", "").replace("--name x", "--name y")
    assert cli(*again.split()).status == 0
    said = cli("diagnose", tmp_path / "walk/ddpg/y", "--probes", "seem")
    assert "bad   seem/normalised" in said.out and "will leave any bound" in said.out


def test_bad_input(cli, dataset, tmp_path):
    sac = f"train sac --env probe/Both {ONLINE} --steps 60 --name sac --out {tmp_path}"
    assert_one_line(cli(*sac.split(), "--on-diverge", "stop"), 2, "--probes seem")
    assert_one_line(cli(*sac.split(), "--on-diverge", "halt"), 2, "warn")
    assert_one_line(cli(*sac.split(), "--probes", "seem", "--eval-freq", "0"), 2, "--probe-freq")
    assert_one_line(cli(*sac.split(), "--probes", "seem", "--probe-freq", "-1"), 2, "probe-freq")
    flow = sac.replace("train sac", "train sac-flow")
    assert_one_line(cli(*flow.split(), "--probes", "seem", "--probe-freq", "20"), 2, "plain networks", "td3")


# The recipe


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.thorough
def test_the_runs_of_the_recipe_are_commands_that_parse(scale, tmp_path):
    data = tmp_path / "data"
    jobs = control(scale, data) + subsets(scale, data) + antmaze(scale, data)
    assert len({job.folder(tmp_path) for job in jobs}) == len(jobs)
    assert bool(jobs) == (scale != "smoke")
    assert len({tuple(job.command(tmp_path)) for job in jobs}) == len(jobs) // 3
    for job in jobs:
        agent, *words = job.command(tmp_path)[2:]
        read = parse(flags_for(agent), words, "trimtab train")
        assert job.seed in read.seeds and read.probes == ("seem",) and read.probe_freq > 0 and read.eval_freq > 0
        assert Path(read.dataset) == data / f"{data_name(job)}.npz"
        assert read.agent.critic_norm == ("layer" if "LayerNorm" in job.method else None)
        assert read.agent.tau == (1.0 if job.setting.startswith("control") else 0.005)
    assert scale == "smoke" or {0.1, 0.01} <= {_fraction(job) for job in jobs}


def _fraction(job: Job) -> float:
    return float(job.flags[job.flags.index("--dataset-fraction") + 1]) if "--dataset-fraction" in job.flags else 1.0


def test_the_largest_return_is_of_all_rows():
    # A reward that no batch is likely to show, in a data set and in a replay buffer.
    row = (np.zeros((500, 2), np.float32), np.zeros((500, 1), np.float32), np.zeros(500, np.float32))
    data = jax.tree.map(jnp.asarray, Transition(row[0], row[1], row[2], row[2], row[0]))
    data = replace(data, reward=data.reward.at[321].set(-7.0))
    assert largest_reward(OfflineSource(data, 4), ()) == 7.0
    one = jax.tree.map(lambda x: x[0], data)
    assert largest_reward(None, Buffer.create(one, 600).extend(data)) == 7.0


@pytest.mark.thorough
def test_jobs_that_train_together_are_one_command(tmp_path):
    options = dict(steps=120, eval_freq=60, eval_episodes=2, log=("csv",), probes="seem", probe_freq=60)
    small = sac.Config(hidden=(8,), batch_size=8, buffer_size=200, learning_starts=20)
    words = flags("sac", "probe/Both", small, **options)
    jobs = [Job("Both", "SAC", seed, words, together=(0, 1)) for seed in (0, 1)]
    said: list[str] = []
    run_jobs(jobs, tmp_path, said.append)
    assert len(said) == 1 and "seeds 0 1" in said[0]
    assert [list(metrics(job, tmp_path)["diagnostics/seem_normalised"][0]) for job in jobs] == [[60, 120]] * 2
    assert curve(jobs[0], tmp_path)[1][-1] != curve(jobs[1], tmp_path)[1][-1]
    run_jobs(jobs, tmp_path, said.append)
    assert "was there" in said[1]
