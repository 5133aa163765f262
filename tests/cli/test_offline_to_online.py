"""From data to online on the command line: evaluation around the switch, and the recipes of FAC and FINO."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import ONLINE
from tests.cli.test_bad_input import assert_one_line
from trimtab.cli.flags import parse
from trimtab.cli.main import main
from trimtab.cli.train import flags_for
from trimtab.papers import comparison, fino, flow_ac, reengage
from trimtab.papers.recipe import Results
from trimtab.papers.sac_flow import data_name
from trimtab.run.results import read_run


@pytest.mark.parametrize("sampling", ["symmetric", pytest.param("merged", marks=pytest.mark.thorough)])
@pytest.mark.thorough
def test_evaluated_on_both_sides_of_the_switch(cli, tmp_path, dataset, sampling):
    """At the last update on data whatever its number, soon after, and at the end; in several environments at once."""
    args = f"train fql --env InvertedPendulum-v5 --dataset {dataset} --offline-steps 110 --online-steps 90 {ONLINE}"
    args = f"{args} --num-envs 3 --sampling {sampling} --eval-freq 40 --out {tmp_path} --name x"
    assert cli(*args.split()).status == 0
    run = tmp_path / "InvertedPendulum-v5/fql/x"
    with (run / "eval.csv").open() as file:
        steps = sorted({int(row["step"]) for row in csv.DictReader(file)})
    assert steps == [40, 80, 110, 122, 161, 200]  # three steps at once: the first one beyond each multiple of 40
    out = tmp_path / "report"
    assert cli("report", run, "--out", out).status == 0
    figures = json.loads((out / "report.json").read_text())
    assert figures["tasks"][0]["switches"] == [110] and None not in figures["runs"][0]["around_switch"]


@pytest.mark.parametrize("seeds", ["--seed 0", pytest.param("--seeds 0 1", marks=pytest.mark.thorough)])
def test_an_own_world_is_evaluated_while_steps_are_collected_for_the_first_update(cli, tmp_path, seeds):
    """Once, after the last of them, if a multiple of --eval-freq was passed; so are lines of the log."""
    args = f"train sac --env probe/Both --steps 90 {ONLINE} --agent.learning-starts 45 --eval-freq 20 --log-freq 30"
    assert cli(*args.split(), *seeds.split(), "--out", tmp_path, "--name", "x").status == 0
    for run in (tmp_path / "probe/Both/sac").iterdir():
        found = read_run(run)
        assert found.returns[0].tolist() == [45, 60, 80, 90]
        steps, rates = found.metrics["time/updates_per_second"]
        assert steps.tolist() == [45, 60, 90] and rates[0] == 0.0 and (rates[1:] > 0.0).all()


def test_prolonged_online_to_a_total_of_all_steps(cli, tmp_path, dataset):
    args = f"train fac --env InvertedPendulum-v5 --dataset {dataset} {ONLINE} --eval-freq 0 --log-freq 10".split()
    args += ["--agent.proxy-steps", "10", "--offline-steps", "20", "--agent.buffer-size", "150", "--online-steps"]
    found = cli(*args, "30", "--out", tmp_path, "--name", "x")
    assert found.status == 0 and "note    --agent.buffer-size 150 keeps only the newest of the" in found.out
    run = tmp_path / "InvertedPendulum-v5/fac/x"
    assert_one_line(cli("resume", run, "--steps", "50"), 2, "--steps 50 is less than the 60 of the run")
    assert cli("resume", run, "--steps", "70").status == 0
    with (run / "metrics.csv").open() as file:
        assert max(int(row["step"]) for row in csv.DictReader(file)) == 70
    assert json.loads((run / "config.json").read_text())["online_steps"] == 40


def jobs(recipe: str, data: Path):
    """All training runs of a recipe."""
    if recipe.startswith("data-to-online"):
        return comparison.jobs(data, comparison.budget_of(recipe.split(", ")[1], None, None))
    if recipe == "fino, small":
        return fino.noise_jobs(data, comparison.Budget())
    if recipe == "flow-ac, cube":
        return flow_ac.cube_jobs(data, flow_ac.CUBE_SEEDS, 100_000)
    if recipe == "flow-ac, TwoRoute":
        return flow_ac.two_route_jobs(data, (0, 1, 2), (7_500, 15_000))
    return (fino if recipe == "fino, paper" else flow_ac).paper_jobs(data)


RECIPES = ["data-to-online, small", "data-to-online, paper", "fino, small", "fino, paper"]


@pytest.mark.parametrize("recipe", [*RECIPES, "flow-ac, TwoRoute", "flow-ac, cube", "flow-ac, paper"])
def test_the_runs_of_a_recipe_are_commands_that_parse(recipe, tmp_path):
    """No two share a folder, and each is read back as what was meant. One seed of the many is enough to read."""
    found = jobs(recipe, tmp_path)
    assert len({job.folder(tmp_path) for job in found}) == len(found)
    for job in (job for job in found if job.seed == 0):
        agent, *words = job.command(tmp_path)[2:]
        read = parse(flags_for(agent), words, "trimtab train")
        assert read.offline_steps or read.online_steps
        assert (agent == "rlpd") == (read.offline_steps == 0)
        assert (read.sampling == "symmetric") == (agent in ("rlpd", "cal-ql", "cql"))
        if job.setting == comparison.TWO_ROUTE:
            assert read.env == "trimtab/TwoRoute-v0" and Path(read.dataset) == tmp_path / "two-route.npz"
        elif "TwoRoute" not in job.setting:
            assert read.env == job.setting and Path(read.dataset) == tmp_path / f"{data_name(job.setting)}.npz"
        else:
            assert read.keep_evaluated and f"{getattr(read.agent, 'lam', read.agent.alpha):g}" in job.setting
    if recipe.startswith("data-to-online"):
        methods = [job.method for job in found if (job.setting, job.seed) == (comparison.CUBE, 0)]
        assert sorted(methods) == sorted([*comparison.OFFLINE, *comparison.BOTH, "RLPD"]) and len(methods) == 11
        watched = [job for job in found if job.setting == comparison.EXPLORE]
        assert {job.method for job in watched} == set(comparison.WATCHED)
        longer = {pair[1] for job in watched for pair in pairwise(job.flags) if pair[0] == "--offline-steps"}
        assert longer == {"80000" if "small" in recipe else "1000000"}
        own = [job for job in found if job.setting == comparison.TWO_ROUTE]
        assert {job.method for job in own} == {"FQL", "FINO", "CQL", "Cal-QL"} and all(job.together for job in own)
        together = {job.method for job in found if job.together and job not in own}
        assert together == set(comparison.OFFLINE)


def test_steps_of_a_comparison_are_flags(cli, tmp_path):
    small = f"--scale small --out {tmp_path}"
    assert_one_line(cli(*f"reproduce flow-ac {small} --offline-steps 10".split()), 2, "data-to-online and fino")
    assert_one_line(cli(*f"reproduce fino --out {tmp_path} --online-steps 10".split()), 2, "scale small")
    assert_one_line(cli(*f"reproduce fino {small} --offline-steps 3".split()), 2, "offline-steps must be at least 4")
    assert comparison.budget_of("small", 400, None) == comparison.Budget(offline=400, longer=400)
    expected = (("FQL", "210", "50"), ("FINO", "210", "100"), ("IQL", "200", "50"), ("RLPD", "20", "50"))
    for method, often, episodes in expected:
        job = comparison.jobs(tmp_path, comparison.budget_of("small", 400, 40), (method,))[0]
        asked = dict(pairwise(job.flags))
        assert asked["--eval-freq"] == often and asked["--eval-episodes"] == episodes


def test_a_recipe_runs_only_the_settings_that_are_named(cli, tmp_path, monkeypatch):
    out = f"--scale small --out {tmp_path}"
    assert_one_line(cli(*f"reproduce seem {out} --only Seek".split()), 2, "data-to-online, fino, flow-ac and reengage")
    ended = cli(*f"reproduce fino {out} --only clusters ring".split())
    assert_one_line(ended, 2, "unknown setting 'ring': choose of clusters, bandit, cube")
    ended = cli(*f"reproduce flow-ac {out} --only clusters".split())
    assert_one_line(ended, 2, "unknown setting 'clusters': choose of density, two-route, cube")
    ended = cli(*f"reproduce reengage {out} --only ContinuousSeek10 Seek".split())
    assert_one_line(ended, 2, "unknown setting 'Seek': choose of ContinuousSeek20, ContinuousSeek10")
    assert not list(tmp_path.glob("runs"))
    started = []
    monkeypatch.setattr(reengage, "run_jobs", lambda jobs, out: started.extend(jobs))
    monkeypatch.setattr(reengage, "curve", lambda job, out: (np.arange(4), np.full(4, float("Re" in job.method))))
    monkeypatch.setattr(reengage, "plot_curves", lambda *args: None)
    main(["reproduce", "reengage", *out.split(), "--only", "DriveSeekSmall", "ContinuousSeek5"])
    assert {job.setting for job in started} == {"DriveSeekSmall", "ContinuousSeek5"} and len(started) == 30
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["command"] == "trimtab reproduce reengage --scale small --only DriveSeekSmall ContinuousSeek5"
    assert {row["setting"] for row in found["rows"]} == {"DriveSeekSmall", "ContinuousSeek5"}


def ran(tmp_path, method: str, rows, **config) -> Results:
    """What a comparison reads of a run with those evaluations: step, return, success."""
    (job,) = comparison.jobs(tmp_path, comparison.Budget(4, 4, (0,)), (method,), (comparison.CUBE,))
    folder = job.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"agent": job.flags[0], "env": "x", "dataset": "d"} | config))
    lines = [f"{step},0,{value},1,{success}" for step, value, success in rows]
    (folder / "eval.csv").write_text("\n".join(["step,episode,return,length,success", *lines]) + "\n")
    results = Results("data-to-online", "small")
    comparison.measure(results, job, tmp_path)
    return results


def test_a_comparison_is_read_from_its_runs(tmp_path):
    """Of a run with its switch at 4: what it had then, what it had at the end, and the worst between."""
    rows = [(2, -9, 0), (4, -10, 0.5), (5, -11, 0.375), (6, -13, 0.25), (8, -5, 1)]
    results = ran(tmp_path, "Cal-QL", rows, offline_steps=4, online_steps=4)
    found = {row["metric"]: row["value"] for row in results.rows}
    assert found[comparison.AFTER_DATA] == 0.5 and found[comparison.AT_END] == 1.0
    assert found[comparison.FIRST] == pytest.approx(0.1)
    assert found[comparison.DROP] == pytest.approx(0.3) and found[comparison.DIP] == pytest.approx(0.25)
    comparison.judge(results, comparison.CUBE, "Cal-QL")
    assert [check["passed"] for check in results.checks] == [True, True, False, False]


def test_what_learnt_nothing_from_data_is_no_proof_of_a_smooth_switch(tmp_path):
    results = ran(tmp_path, "FINO", [(4, -200, 0.0), (8, -200, 0.0)], offline_steps=4, online_steps=4)
    comparison.judge(results, comparison.CUBE, "FINO")
    assert results.failed() == [f"{comparison.CUBE}: FINO, {comparison.AFTER_DATA}, least"]
    for seed in (1, 2):  # nor are two seeds that have learnt something beside one that has not
        results.add(comparison.CUBE, "FINO", seed, comparison.AFTER_DATA, 0.9)
    results.checks.clear()
    comparison.judge(results, comparison.CUBE, "FINO")
    assert results.failed() == [f"{comparison.CUBE}: FINO, {comparison.AFTER_DATA}, least"]


def test_methods_of_one_phase_have_no_switch(tmp_path):
    """FAC's proxy comes before its offline steps, and RLPD has none."""
    rows = [(6, -9, 0.5), (8, -10, 0.75)]
    config = dict(agent_config=dict(proxy_steps=4), offline_steps=4)
    found = {row["metric"]: row["value"] for row in ran(tmp_path, "FAC", rows, **config).rows}
    assert found == {comparison.AFTER_DATA: 0.75}
    found = {row["metric"]: row["value"] for row in ran(tmp_path, "RLPD", rows, offline_steps=0, online_steps=8).rows}
    assert found == {comparison.AT_END: 0.75}


def test_how_often_one_is_above_the_other():
    inside, outside = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    assert flow_ac.auroc(inside, outside) == pytest.approx((1 + 1.5 + 2) / 6)
    assert flow_ac.auroc(outside, inside) == pytest.approx(1.5 / 6)
