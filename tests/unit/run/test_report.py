"""The report: figures worked by hand, a page that needs nothing else, and one clear line for each kind of bad input."""

import base64
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import trim_mean

from trimtab.run.report import ReportError, write_report

EVAL = "step,episode,return,length,success\n"
METRICS = "step,name,value\n"


def make_run(
    folder: Path,
    agent: str = "sac",
    env: str | None = "Hopper-v5",
    seed: int = 0,
    curve: dict[int, list[float]] | None = None,
    metrics: dict[str, dict[int, float]] | None = None,
    success: bool = False,
    done: bool = True,
    **config,
) -> Path:
    """A run folder; `curve` maps a step to the returns of its evaluation episodes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps(
            {"agent": agent, "env": env, "dataset": None, "seed": seed, "steps": 200, "agent_config": {}} | config
        )
    )
    if curve is not None:
        rows = [
            f"{step},{i},{value},10,{int(value > 0) if success else ''}\n"
            for step, values in curve.items()
            for i, value in enumerate(values)
        ]
        (folder / "eval.csv").write_text(EVAL + "".join(rows))
    if metrics is not None:
        rows = [f"{step},{name},{value}\n" for name, points in metrics.items() for step, value in points.items()]
        (folder / "metrics.csv").write_text(METRICS + "".join(rows))
    if done:
        (folder / "DONE").write_text("")
    return folder


def report(runs: list[Path], out: Path) -> tuple[str, dict]:
    """The page and the figures; a nan in the JSON is an error."""
    page = write_report(runs, out)
    refuse = lambda constant: pytest.fail(f"{constant} is no JSON")
    return page.read_text(), json.loads((out / "report.json").read_text(), parse_constant=refuse)


def test_figures_equal_those_worked_by_hand(tmp_path):
    sac, td3 = [100.0, 300.0, 200.0, 900.0], [50.0, 250.0, 150.0]
    runs = [
        make_run(
            tmp_path / f"sac{i}", "sac", seed=i, curve={100: [score * 2, score * 2 + 4], 200: [score - 1, score + 1]}
        )
        for i, score in enumerate(sac)
    ]
    runs += [make_run(tmp_path / f"td3{i}", "td3", seed=i, curve={200: [score]}) for i, score in enumerate(td3)]
    page, figures = report(runs, tmp_path / "out")

    (task,) = figures["tasks"]
    assert task["task"] == "Hopper-v5" and task["axis"] == "environment steps"
    a, b = task["groups"]
    assert (a["agent"], a["seeds"], a["scores"]) == ("sac", [0, 1, 2, 3], sac)
    assert a["last"]["iqm"]["value"] == pytest.approx(250.0)  # the middle two of 100 200 300 900
    assert a["last"]["mean"]["value"] == pytest.approx(375.0)
    assert a["last"]["median"]["value"] == pytest.approx(250.0)
    assert a["best"]["mean"]["value"] == pytest.approx(752.0)  # twice the score, plus 2, at step 100
    assert b["last"]["iqm"]["value"] == pytest.approx(150.0) and b["best"]["mean"]["value"] == pytest.approx(150.0)
    assert a["last"]["mean"]["low"] < 375.0 < a["last"]["mean"]["high"]
    assert a["curve"]["steps"] == [100, 200]
    assert a["curve"]["iqm"] == pytest.approx([trim_mean([2 * x + 2 for x in sac], 0.25), 250.0])
    wins = np.mean([(x > y) for x in sac for y in td3])
    (pair,) = task["comparisons"]
    assert (pair["better"], pair["than"]) == ("sac", "td3")
    assert pair["probability"]["value"] == pytest.approx(wins)
    # The page shows the same figures.
    interval = a["last"]["iqm"]
    assert f'250 <span class="faint">[{interval["low"]:.4g}, {interval["high"]:.4g}]</span>' in page
    assert f"{wins:.2f} <span" in page
    assert "Fewer than five seeds" in page


def test_page_is_self_contained(tmp_path):
    run = make_run(
        tmp_path / "run",
        curve={0: [1.0], 100: [2.0]},
        metrics={"train/critic_loss": {0: 1.0, 100: 0.5}, "diagnostics/seem": {0: 0.5, 100: 0.7}, "time/fps": {0: 9.0}},
    )
    video = bytes(range(256)) * 4
    (run / "videos").mkdir()
    for name in ("step_9.mp4", "step_100.mp4"):
        (run / "videos" / name).write_bytes(video + name.encode())
    (run / "command.txt").write_text("trimtab train sac --env Hopper-v5\n")
    (run / "env.json").write_text(json.dumps({"versions": {"jax": "9.8.7"}, "git": "abc123", "device": "toaster"}))
    page, figures = report([run], tmp_path / "out")
    assert "http://" not in page and "https://" not in page and "//cdn" not in page
    assert "<script" not in page and "<link" not in page and "@import" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith(("data:video/mp4;base64,", "#")) for source in sources)
    assert all(f'id="{source[1:]}"' in page for source in sources if source.startswith("#"))
    assert f'src="data:video/mp4;base64,{base64.b64encode(video + b"step_100.mp4").decode()}"' in page  # the newest
    assert "step_9.mp4" in page  # named, not embedded
    for name in ("learning curve", "train/critic_loss", "diagnostics/seem", "time/fps"):
        assert f'aria-label="Hopper-v5: {name}"' in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert all(text in page for text in ("9.8.7", "abc123", "toaster", "trimtab train sac --env Hopper-v5"))
    assert figures["runs"][0]["metrics"] == {"train/critic_loss": 0.5, "diagnostics/seem": 0.7, "time/fps": 9.0}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_the_switch_from_data_to_online_is_marked(tmp_path):
    """Two seeds that switch at 100, one agent whose proxy comes first, one that never acts, one that never had data."""
    shared = dict(env="Hopper-v5", dataset="d", offline_steps=100, online_steps=50, steps=9, success=True)
    curve = lambda shift: {50: [1.0], 100: [2.0 + shift], 120: [-1.0 + shift], 150: [4.0]}
    loss = {"train/critic_loss": {50: 1.0, 120: 2.0}}
    runs = [make_run(tmp_path / f"{i}", "cal-ql", seed=i, curve=curve(i), metrics=loss, **shared) for i in (0, 1)]
    fac = {"agent_config": {"proxy_steps": 30}}
    runs += [make_run(tmp_path / "fac", "fac", curve={130: [3.0], 180: [2.5]}, **shared | fac)]
    runs += [make_run(tmp_path / "iql", "iql", curve={100: [3.0]}, **shared | {"online_steps": 0})]
    page, figures = report(runs, tmp_path / "out")
    (task,) = figures["tasks"]
    assert task["switches"] == [100, 130] and task["axis"] == "steps"
    assert [run["around_switch"] for run in figures["runs"]] == [[2.0, -1.0], [3.0, 0.0], [3.0, 2.5], None]
    assert page.count("stroke-dasharray") == 2 * 3  # two switches in the curves, the success rates, and one metric
    assert "dashed line is the switch" in page
    row = page.split("From data to online")[1].split("</table>")[0].split("cal-ql")[1].split("</tr>")[0]
    assert re.findall(r"<td>(.*?)</td>", row) == ["100", "2.5", "-0.5", "1.00", "0.00"]
    plain, figures = report([make_run(tmp_path / "sac", curve={100: [1.0]})], tmp_path / "plain")
    assert "dashed" not in plain and "From data to online" not in plain and figures["tasks"][0]["switches"] == []


@pytest.mark.parametrize(("num_envs", "after"), [(1, 3.0), (7, 4.0)])
@pytest.mark.parametrize("how", [{"sampling": "symmetric"}, {"phase": "online"}, {"sampling": "merged"}])
def test_what_was_evaluated_before_the_first_update_online_is_not_after_the_switch(tmp_path, how, num_envs, after):
    """Ten steps without an update after a switch at 100; with seven environments side by side fourteen."""
    config = dict(learning_starts=10) | ({"phase": "online"} if "phase" in how else {})
    shared = dict(dataset="d", offline_steps=100, online_steps=50, num_envs=num_envs, agent_config=config)
    curve = {100: [1.0], 110: [2.0], 112: [3.0], 150: [4.0]}
    _, figures = report([make_run(tmp_path / "x", "fino", curve=curve, **shared | how)], tmp_path / "out")
    assert figures["runs"][0]["around_switch"] == [1.0, 2.0 if how == {"sampling": "merged"} else after]


def test_steps_that_a_run_is_meant_to_take(tmp_path):
    shared = dict(dataset="d", done=False, curve={20: [1.0]})
    fac = {"agent_config": {"proxy_steps": 30}}
    runs = [make_run(tmp_path / "fac", "fac", offline_steps=100, online_steps=50, **shared, **fac)]
    runs += [make_run(tmp_path / "rlpd", "rlpd", offline_steps=0, online_steps=60, **shared)]
    page, figures = report(runs, tmp_path / "out")
    assert "<td>20 of 180</td>" in page and "<td>20 of 60</td>" in page
    assert figures["tasks"][0]["switches"] == [130]


def test_scores_are_normalised_by_the_returns_stored_with_the_data_set(tmp_path):
    made = dict(dataset="mujoco/hopper/medium-v0", references=[20.0, 220.0])
    runs = [make_run(tmp_path / f"{seed}", seed=seed, curve={100: [70.0 + 10 * seed]}, **made) for seed in range(3)]
    page, figures = report(runs, tmp_path / "out")
    (task,) = figures["tasks"]
    score, iqm = task["groups"][0]["normalized"], task["groups"][0]["last"]["iqm"]
    assert task["references"] == [20.0, 220.0]
    assert score["value"] == pytest.approx(30.0)  # the IQM is 80: 60 of the 200 from random to expert
    assert score["low"] == pytest.approx((iqm["low"] - 20) / 2) and score["high"] == pytest.approx(
        (iqm["high"] - 20) / 2
    )
    assert "<th>score</th>" in page and "0 at 20 (uniform actions) and 100 at 220" in page
    # Runs of other references cannot be put on one scale.
    other = make_run(tmp_path / "other", seed=9, curve={100: [5.0]}, **made | {"references": None})
    page, figures = report([*runs, other], tmp_path / "out")
    assert figures["tasks"][0]["references"] is None and "<th>score</th>" not in page


def test_one_seed_has_no_interval(tmp_path):
    page, figures = report([make_run(tmp_path / "run", curve={100: [5.0, 7.0]})], tmp_path / "out")
    iqm = figures["tasks"][0]["groups"][0]["last"]["iqm"]
    assert iqm == {"value": 6.0, "low": None, "high": None}
    assert "1 seed: no interval" in page and "[" not in re.findall(r"<td>6 <span.*?</td>", page)[0]


def test_half_written_last_line_of_a_training_run_is_ignored(tmp_path):
    run = make_run(
        tmp_path / "run", curve={100: [5.0], 200: [8.0]}, metrics={"train/loss": {100: 1.5}}, done=False, steps=1000
    )
    with (run / "eval.csv").open("a") as file:
        file.write("300,0,9")  # of 95.5,10,
    with (run / "metrics.csv").open("a") as file:
        file.write("200,train/loss,0.")  # parses, but is not the value that was being written
    page, figures = report([run], tmp_path / "out")
    assert figures["tasks"][0]["groups"][0]["scores"] == [8.0]
    assert figures["runs"][0]["metrics"] == {"train/loss": 1.5}
    assert not figures["runs"][0]["done"] and "<td>not finished</td><td>200 of 1k</td>" in page


def test_a_run_that_diverged_says_so(tmp_path):
    run = make_run(tmp_path / "run", curve={100: [5.0]}, done=False, steps=1000)
    (run / "FAILED").write_text("critic_loss was nan at step 100\n")
    page, figures = report([run], tmp_path / "out")
    assert figures["runs"][0]["failure"] == "critic_loss was nan at step 100"
    assert "<td>failed: critic_loss was nan at step 100</td>" in page and "not finished" not in page


def test_a_resumed_run_counts_the_later_rows(tmp_path):
    run = make_run(tmp_path / "run", curve={100: [5.0], 200: [8.0]})
    with (run / "eval.csv").open("a") as file:
        file.write("200,0,10,10,\n")
    _, figures = report([run], tmp_path / "out")
    assert figures["tasks"][0]["groups"][0]["scores"] == [10.0]


def test_diverged_runs_are_not_hidden(tmp_path):
    good = make_run(tmp_path / "good", curve={100: [5.0], 200: [8.0]})
    bad = make_run(
        tmp_path / "bad",
        seed=1,
        curve={100: [99.0], 200: [math.nan]},
        metrics={"train/critic_loss": {50: 1.0, 100: math.inf, 150: math.nan}},
    )
    page, figures = report([good, bad], tmp_path / "out")
    assert figures["tasks"][0]["groups"][0]["scores"] == [8.0]
    assert figures["runs"][1]["diverged"] == {"train/critic_loss": 100, "return": 200}
    assert "1 of 2" in page and "seed 1: train/critic_loss from step 100, return from step 200; it has no score" in page


def test_success_and_diagnosis_are_shown(tmp_path):
    run = make_run(tmp_path / "run", curve={100: [-1.0, -1.0], 200: [1.0, -1.0, 1.0, 1.0]}, success=True)
    diagnosis = {
        "verdicts": [{"name": "seem", "level": "bad", "text": "grows <fast>"}],
        "values": {"seem": 1.23456},
        "arrays": {"spectrum": [3.0, 2.0, 1.0], "matrix": [[1.0, 2.0]]},
    }
    (run / "diagnose.json").write_text(json.dumps(diagnosis))
    page, figures = report([run], tmp_path / "out")
    assert figures["tasks"][0]["groups"][0]["success"]["iqm"] == [0.0, 0.75]
    assert "<td>0.75</td>" in page and 'aria-label="Hopper-v5: success rate"' in page
    assert '<li class="bad">' in page and "grows &lt;fast&gt;" in page
    assert "<td>1.235</td>" in page and 'aria-label="Hopper-v5: diagnostics/spectrum (by index)"' in page
    assert figures["runs"][0]["verdicts"] == diagnosis["verdicts"]


@pytest.mark.parametrize(("edge", "lines"), [(0.03, 0), (0.25, 1)])
def test_a_quadrature_that_is_not_to_be_trusted_is_said(tmp_path, edge, lines):
    run = make_run(tmp_path / "run", curve={100: [1.0]}, metrics={"train/edge": {50: 0.5, 100: edge}})
    page, figures = report([run], tmp_path / "out")
    found = figures["runs"][0]["verdicts"]
    assert len(found) == lines == page.count("25% of the polynomial density lies in the outermost cells")
    assert all((verdict["name"], verdict["level"]) == ("train/edge", "warn") for verdict in found)


def test_without_evaluations_the_training_episodes_are_drawn(tmp_path):
    run = make_run(tmp_path / "run", metrics={"rollout/ep_rew_mean": {step: float(step) for step in range(1000)}})
    page, figures = report([run], tmp_path / "out")
    group = figures["tasks"][0]["groups"][0]
    assert figures["tasks"][0]["curves"] == "training episodes" and "Mean return of training episodes" in page
    assert group["last"] is None and "no score" in page
    # Long curves are averaged over bins, which keeps a straight line straight.
    np.testing.assert_allclose(group["curve"]["iqm"], group["curve"]["steps"])
    assert len(group["curve"]["steps"]) == 300


def test_evaluation_json_gives_the_score_where_there_is_no_eval_csv(tmp_path):
    run = make_run(tmp_path / "run", env=None, dataset="/data/cubes.hdf5", offline_steps=500, steps=9000, done=False)
    evaluation = {"episodes": [{"return": 4.0}], "mean": 4.5, "iqm": 4.25, "iqm_low": 4.0, "iqm_high": 4.5}
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"checkpoint": "final"}))
    page, figures = report([run], tmp_path / "out")
    assert (figures["tasks"][0]["task"], figures["tasks"][0]["axis"]) == ("cubes", "gradient steps")
    assert figures["tasks"][0]["groups"][0]["scores"] == [4.5]
    assert "4.25" in page and "1 episodes, final" in page and "<td>0 of 500</td>" in page


def test_other_configurations_are_no_seeds_of_each_other(tmp_path):
    runs = [
        make_run(tmp_path / str(lr), seed=0, curve={100: [lr]}, agent_config={"lr": lr, "gamma": 0.9})
        for lr in (0.1, 0.2)
    ]
    _, figures = report(runs, tmp_path / "out")
    assert [group["agent"] for group in figures["tasks"][0]["groups"]] == ["sac (lr=0.1)", "sac (lr=0.2)"]
    twice = make_run(tmp_path / "twice", seed=0, curve={100: [0.3]}, agent_config={"lr": 0.1, "gamma": 0.9})
    page, figures = report([runs[0], twice], tmp_path / "twice_out")
    assert figures["tasks"][0]["groups"][0]["scores"] == [0.1, 0.3]
    assert "seed 0 occurs more than once" in page


def test_names_are_escaped(tmp_path):
    page, _ = report([make_run(tmp_path / "a", "<script>x", "<b>env", curve={1: [1.0]})], tmp_path / "out")
    assert "<script>" not in page and "<b>env" not in page and "&lt;script&gt;x" in page


def test_a_folder_stands_for_the_runs_below_it(tmp_path):
    root = tmp_path / "runs" / "Hopper-v5" / "sac"
    run = make_run(root / "a", curve={100: [1.0]})
    make_run(root / "a" / "checkpoints" / "step_100", curve={100: [77.0]})  # no run of its own
    started = make_run(root / "b", seed=1, done=False)
    (root / "b" / "eval.csv").write_text(EVAL)
    page, figures = report([tmp_path / "runs", run], tmp_path / "out")
    assert [entry["run"] for entry in figures["runs"]] == [str(run)]
    assert figures["nothing_yet"] == [str(started)] and "nothing logged yet" in page
    with pytest.raises(ReportError, match=r"nothing to report yet in .*sac/b"):
        write_report([started], tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


def test_an_html_path_names_the_page(tmp_path):
    page = write_report([make_run(tmp_path / "run", curve={1: [1.0]})], tmp_path / "x" / "mine.html")
    assert page == tmp_path / "x" / "mine.html" and page.exists() and page.with_suffix(".json").exists()


def test_bad_folders_are_named(tmp_path):
    run = make_run(tmp_path / "run", curve={1: [1.0]})
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(ReportError, match="no runs given"):
        write_report([], tmp_path / "out")
    with pytest.raises(ReportError, match=r"no such folder: .*missing$"):
        write_report([run, tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(ReportError, match=r"not a run.*: .*/notes, .*/other$"):
        write_report([run, tmp_path / "notes", tmp_path / "other"], tmp_path / "out")
    with pytest.raises(ReportError, match="is a file"):
        write_report([run], run / "config.json")
    assert issubclass(ReportError, ValueError) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("eval.csv", EVAL + "100,0,1,1,\n100,1,x,1,\n", r"eval\.csv, line 3: could not convert.*'x'"),
        ("eval.csv", EVAL + "100,0,1\n", r"eval\.csv, line 2: 3 fields where the header has 5"),
        ("eval.csv", "step,return\n1,2\n", r"eval\.csv, line 1: no column 'episode'"),
        ("eval.csv", EVAL + "1,0,1,1,maybe\n", r"eval\.csv, line 2: .*'maybe'"),
        ("metrics.csv", METRICS + "1,a,2\n\n2,a,b,c\n", r"metrics\.csv, line 4: 4 fields where the header has 3"),
        ("metrics.csv", METRICS + "1,a,2", None),  # a finished run wrote its last line in full
        ("metrics.csv", METRICS + "1,a,", r"metrics\.csv, line 2: could not convert"),
        ("config.json", "{", r"cannot read .*config\.json"),
        ("config.json", "[]", r"config\.json: it holds no JSON object"),
        ("config.json", '{"agent": "sac"}', r"config\.json must name an agent, and an env or a dataset"),
        ("diagnose.json", "nonsense", r"cannot read .*diagnose\.json"),
    ],
)
def test_malformed_files_are_named_and_the_old_report_stays(tmp_path, name, text, message):
    run = make_run(tmp_path / "run", curve={1: [1.0]})
    (run / name).write_text(text)
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("old")
    if message is None:
        assert report([run], out)[1]["runs"][0]["metrics"] == {"a": 2.0}
        return
    with pytest.raises(ReportError, match=message) as caught:
        write_report([run], out)
    assert "\n" not in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["report.html"] and (out / "report.html").read_text() == "old"


def test_import_is_cheap():
    heavy = ("matplotlib", "rliable", "imageio", "gymnasium", "mujoco", "jax", "scipy", "pandas", "PIL")
    code = f"import sys, trimtab.run.report, trimtab.run.video; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
