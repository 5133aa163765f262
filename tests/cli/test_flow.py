"""Flow policies from the command line: a probe, more steps than trained with, diagnosis, export; and recipes."""

import csv
import json
from pathlib import Path

import pytest

from tests.cli.conftest import ONLINE
from tests.cli.test_bad_input import assert_one_line
from trimtab.cli.flags import parse
from trimtab.cli.main import main
from trimtab.cli.train import flags_for
from trimtab.core import RunError
from trimtab.papers import PAPERS
from trimtab.papers.recipe import Job, Results, curve, flags, plot_curves, run_jobs
from trimtab.papers.sac_flow import CLONING, FLOWS, data_name, from_scratch, offline_to_online

FLOW = f"train sac-flow --agent.width 8 {ONLINE}"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A flow of 4 steps on Humanoid (348 observations, 17 actions within 0.4), trained for a few updates."""
    out = tmp_path_factory.mktemp("runs")
    args = f"{FLOW} --env Humanoid-v5 --steps 60 --eval-freq 60 --probes rollout-grad --name flow --out {out}"
    assert main(args.split()) == 0
    return out / "Humanoid-v5/sac-flow/flow"


@pytest.mark.thorough
def test_a_probe_is_logged_at_each_evaluation(run):
    with (run / "metrics.csv").open() as file:
        found = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}
    steps = [found[f"diagnostics/rollout_grad_step_{i}"] for i in range(4)]
    assert all(step > 0 for step in steps)
    assert found["diagnostics/rollout_grad_ratio"] == pytest.approx(steps[0] / steps[-1], rel=1e-4)


def test_more_steps_than_trained_with(cli, run):
    said = cli("eval", str(run), "--episodes", "2", "--flow-steps", "8")
    assert said.status == 0, said.err
    assert json.loads((run / "evaluation.json").read_text())["flow_steps"] == 8


@pytest.mark.thorough
def test_diagnose_says_whether_the_gradient_is_steady(cli, run):
    said = cli("diagnose", str(run), "--batches", "2")
    assert said.status == 0, said.err
    assert "rollout_grad/ratio" in said.out
    found = json.loads((run / "diagnose.json").read_text())
    assert len(found["arrays"]["rollout_grad/step"]) == 4 and len(found["arrays"]["rollout_grad/call"]) == 4
    page = run / "report"
    assert cli("report", str(run), "--out", str(page)).status == 0
    assert "rollout grad/step (by index)" in (page / "report.html").read_text()


@pytest.mark.parametrize("options", ["", "--noise input", "--format stablehlo --noise input"])
@pytest.mark.thorough
def test_export(cli, run, options, tmp_path):
    said = cli("export", str(run), *options.split(), "--out", str(tmp_path / "policy"))
    assert said.status == 0, said.err
    assert (tmp_path / "policy").stat().st_size > 1000


def test_bad_input(cli, run, tmp_path):
    sac = f"train sac --env probe/Both {ONLINE} --steps 60 --eval-freq 60 --name sac --out {tmp_path}"
    assert_one_line(cli(*sac.split(), "--probes", "rollout"), 2, "rollout-grad")
    assert_one_line(cli(*sac.split(), "--probes", "rollout-grad"), 2, "flow policy", "sac-flow")
    silent = sac.replace("train sac", "train sac-flow").replace("--eval-freq 60", "--eval-freq 0")
    assert_one_line(cli(*silent.split(), "--probes", "rollout-grad"), 2, "eval-freq")
    assert_one_line(cli("eval", str(run), "--flow-steps", "0"), 2, "flow_steps")
    assert cli(*sac.replace("--name sac", "--name plain").split()).status == 0
    plain = tmp_path / "probe/Both/sac/plain"
    assert_one_line(cli("eval", str(plain), "--flow-steps", "4"), 2, "flow")
    assert_one_line(cli("diagnose", str(plain), "--probes", "rollout-grad"), 2, "flow")
    assert_one_line(cli("diagnose", str(run), "--probes", "coupling"), 2, "coupling", "log-density", "sac-flow")
    discrete = f"{FLOW} --env CartPole-v1 --steps 60 --out {tmp_path}"
    assert_one_line(cli(*discrete.split()), 2, "sac-flow", "continuous")
    assert_one_line(cli("reproduce", "sac-flw"), 2, "sac-flow")
    (tmp_path / "file").write_text("")
    assert_one_line(cli("reproduce", "sac-flow", "--out", str(tmp_path / "file")), 2, "--out")


# Recipes


def test_every_paper_is_listed(cli):
    said = cli("list", "papers")
    assert said.status == 0 and all(name in said.out for name in PAPERS)


@pytest.mark.thorough
def test_a_recipe_trains_what_is_missing_and_reads_what_is_there(tmp_path):
    options = dict(steps=120, eval_freq=60, eval_episodes=2, log=("csv",))
    from trimtab.agents.sac import Config

    small = Config(hidden=(8,), batch_size=8, buffer_size=200, learning_starts=20)
    jobs = [Job("Both", "SAC", seed, flags("sac", "probe/Both", small, **options)) for seed in (0, 1)]
    said: list[str] = []
    run_jobs(jobs, tmp_path, said.append)
    steps, returns = curve(jobs[0], tmp_path)
    assert list(steps) == [60, 120] and len(returns) == 2
    run_jobs(jobs, tmp_path, said.append)
    assert [("was there" in line) for line in said] == [False, False, True, True]
    plot_curves(jobs, tmp_path, tmp_path / "curves.png", "both")
    assert (tmp_path / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize("scale", ["smoke", "small", "paper"])
@pytest.mark.thorough
def test_the_runs_of_sac_flow_are_commands_that_parse(scale, tmp_path):
    """Every job's flags are read back as the configuration that was meant, and no two jobs share a folder."""
    jobs = from_scratch(scale) + offline_to_online(scale, tmp_path)
    assert len({job.folder(tmp_path) for job in jobs}) == len(jobs)
    for job in jobs:
        agent, *words = job.command(tmp_path)[2:]
        read = parse(flags_for(agent), words, "trimtab train")
        assert (read.env, read.seed) == (job.setting, job.seed)
        velocity = FLOWS.get(job.method, "gated")
        assert getattr(read.agent, "velocity", "gated") == velocity
        if job.measure == "success":
            assert Path(read.dataset) == tmp_path / f"{data_name(job.setting)}.npz"
            assert read.agent.rl == (job.method != CLONING) == (read.online_steps > 0)
    assert scale == "smoke" or {job.method for job in jobs} == {*FLOWS, "Gaussian SAC", CLONING}


def test_the_data_set_of_a_task():
    assert data_name("cube-single-play-singletask-task2-v0") == "cube-single-play-v0"
    assert data_name("cube-double-play-singletask-v0") == "cube-double-play-v0"


def test_a_recipes_failed_run_ends_it_with_its_reason(tmp_path):
    with pytest.raises(RunError, match=r"NoSuchWorld-v0"):
        run_jobs([Job("x", "SAC", 0, ("sac", "--env", "NoSuchWorld-v0"))], tmp_path, print)


def test_results_are_a_table_and_json(tmp_path):
    results = Results("sac-flow", "smoke")
    for seed, value in enumerate((1.0, 2.0, 6.0)):
        results.add("task", "ours", seed, "return", value)
    results.anchor("task", "paper", "return", "about 3", "Table 1")
    results.check("ours is high", False, 2.0, 5.0)
    text, path = results.save(tmp_path)
    assert "about 3" in text and "FAILED  ours is high: 2 (threshold 5)" in text
    record = json.loads(path.read_text())
    assert {"paper", "scale", "command", "versions", "rows", "anchors", "checks"} <= set(record)
    assert record["rows"][0] == dict(setting="task", method="ours", seed=0, metric="return", value=1.0)
    assert results.failed() == ["ours is high"]
