"""`trimtab data`, data sets by name, and offline-to-online in an own world."""

import json
from functools import partial

import numpy as np
import pytest

from tests.cli.conftest import TINY, contents, edit_config, metrics_of
from trimtab import api
from trimtab.agents.sac import Config
from trimtab.cli import behaviour
from trimtab.data import collect, collect_policy
from trimtab.envs import ogbench
from trimtab.run.folder import write_json

ARGS = f"{TINY} --eval-episodes 3 --log-freq 100 --eval-freq 0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which `data/` holds a small data set of TwoRoute."""
    path = tmp_path_factory.mktemp("here")
    collect.make("two-route-sparse", size=collect.Size(20), out=path / "data", tick=lambda *_: None)
    return path


def test_make_writes_data_and_how_it_was_made(cli, tmp_path):
    found = cli("data", "make", "two-route-slow", "--episodes", 3, "--seed", 7, "--out", tmp_path / "new")
    assert found.status == 0, found.err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["two-route-slow.json", "two-route-slow.npz"]
    record = json.loads((tmp_path / "new" / "two-route-slow.json").read_text())
    assert record["command"] == f"trimtab data make two-route-slow --episodes 3 --seed 7 --out {tmp_path / 'new'}"
    assert (record["seed"], record["episodes"]) == (7, {"two-route-slow": 3})
    with np.load(tmp_path / "new" / "two-route-slow.npz") as file:
        assert record["rows"] == {"two-route-slow": len(file["actions"])}
    assert record["versions"]["trimtab"] and record["versions"]["jax"]
    # The same command gives the same data; it replaces what was there.
    before = contents(tmp_path / "new")
    assert cli("data", "make", "two-route-slow", "--episodes", 3, "--seed", 7, "--out", tmp_path / "new").status == 0
    assert contents(tmp_path / "new") == before


@pytest.mark.thorough
def test_trained_policies_are_recorded(cli, tmp_path, monkeypatch):
    # The learner is trained once; what it is told apart by are the steps of its evaluations.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(collect_policy, "REFERENCE_EPISODES", 2)
    monkeypatch.setattr(behaviour, "EVALUATIONS", 3)
    monkeypatch.setattr(behaviour, "Config", partial(Config, hidden=(8, 8), batch_size=16))
    run = tmp_path / "data" / "runs" / "InvertedPendulum-v5" / "sac" / "seed-0_steps-303"
    made = {}
    for stage in ("expert", "medium", "medium-replay"):
        rows = "" if stage == "medium-replay" else "--rows 60"
        found = cli(*f"data make mujoco/inverted-pendulum/{stage}-v0 --steps 303 {rows}".split())
        assert found.status == 0, found.err
        assert ("training SAC in InvertedPendulum-v5" in found.out) == (stage == "expert")
        made[stage] = json.loads((tmp_path / "data" / "mujoco" / "inverted-pendulum" / f"{stage}-v0.json").read_text())
        # So short a run learns nothing: from here on it is said to have gone all the way at once.
        write_json(run / "references.json", made["expert"]["references"] | {"random": -1e6})
    assert made["expert"]["behaviour"]["step"] == 303
    assert made["expert"]["rows"] == {"mujoco/inverted-pendulum/expert-v0": 60}
    assert made["medium-replay"]["behaviour"]["step"] == 101
    assert made["medium-replay"]["rows"] == {"mujoco/inverted-pendulum/medium-replay-v0": 101}
    assert {path.name for path in (run / "evaluated").iterdir()} == {f"step_{n}" for n in (101, 202, 303)}
    assert "score" not in cli("eval", run, "--episodes", 1).out
    assert cli("list", "datasets").out.count("in data/") == 3

    # Learning from it gives scores: 0 is random, 100 the expert.
    args = f"--offline-steps 40 --eval-freq 40 --eval-episodes 2 {TINY} --name a"
    found = cli(*f"train iql --dataset mujoco/inverted-pendulum/expert-v0 --env InvertedPendulum-v5 {args}".split())
    assert found.status == 0, found.err
    run = tmp_path / "runs" / "InvertedPendulum-v5" / "iql" / "a"
    logged = {line.split(",")[1]: float(line.split(",")[2]) for line in metrics_of(run)[1:]}
    references = made["expert"]["references"]
    low, high = references["random"], references["expert"]
    score = 100 * (logged["eval/mean_reward"] - low) / (high - low)
    assert logged["eval/normalized_score"] == pytest.approx(score, rel=1e-4)
    assert "score" in cli("eval", run, "--episodes", 2).out
    record = json.loads((run / "evaluation.json").read_text())
    assert record["normalized_score"] == pytest.approx(100 * (record["mean"] - low) / (high - low))
    assert record["references"] == [low, high]


def test_an_interrupted_learner_goes_on(tmp_path):
    config = Config(hidden=(8, 8), batch_size=16, buffer_size=200, learning_starts=100)
    options = dict(seed=0, config=config, eval_freq=50, keep_evaluated=True, log=("csv",), quiet=True)
    api.train("sac", "InvertedPendulum-v5", steps=100, out=tmp_path / "runs", name="seed-0_steps-200", **options)
    run = tmp_path / "runs" / "InvertedPendulum-v5" / "sac" / "seed-0_steps-200"
    edit_config(run, steps=200)
    (run / "DONE").unlink()
    found = behaviour.train(collect_policy.Training("InvertedPendulum-v5", 200, 0, 100), tmp_path / "runs")
    assert [step for step, _ in found.evaluations] == [50, 100, 150, 200] and (run / "DONE").exists()
    assert len(found.replay()["rewards"]) == 199  # the last step was never learnt from


def test_show(cli, folder, dataset, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("two-route-sparse", "data/two-route-sparse.npz", folder / "data" / "two-route-sparse.npz"):
        found = cli("data", "show", name)
        assert found.status == 0, found.err
        assert "episodes    20" in found.out and "terminated" in found.out
    found = cli("data", "show", dataset)
    assert found.status == 0 and "rows        2" in found.out


def test_list(cli, folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = cli("list", "datasets").out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines if line.startswith("two-route")] == [
        "to be made", "to be made", "to be made", "in data/",
    ]  # fmt: skip
    assert any(line.startswith("cube-quadruple-noisy-v0") for line in lines)


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        ("data", 2, "say what to do: trimtab data make NAME"),
        ("data mak two-route", 2, "unknown command `data mak`: did you mean `data make`?"),
        ("data make", 2, "required"),
        ("data make two-rout", 2, "no data set 'two-rout' can be made: did you mean 'two-route'?"),
        ("data make cube-singel-play-v0", 2, "did you mean 'cube-single-play-v0'?"),
        ("data make humanoidmaze-large-navigate-v0", 2, "no data set 'humanoidmaze-large-navigate-v0' can be made"),
        ("data make two-route --episodes 0", 2, "episodes must be at least 1, got 0"),
        ("data make two-route --rows 5", 2, "two-route has no --rows: its size is set by --episodes"),
        ("data make mujoco/hopper/medum-v0", 2, "did you mean 'mujoco/hopper/medium-v0'?"),
        ("data make mujoco/hopper/medium-v0 --episodes 3", 2, "its size is set by --steps and --rows"),
        ("data make mujoco/hopper/medium-v0 --rows 0", 2, "rows must be at least 1, got 0"),
        ("data make mujoco/hopper/medium-replay-v0 --rows 9", 2, "leave --rows out"),
        (
            "train iql --dataset mujoco/hopper/medium-v0 --offline-steps 10",
            2,
            "the data set mujoco/hopper/medium-v0 is not in data/: make it with `trimtab data make mujoco/hopper/",
        ),
        (
            "train iql --dataset D4RL/door/human-v2 --offline-steps 10",
            2,
            "is neither in data/ nor in Minari's store (STORE): fetch it with `minari download D4RL/door/human-v2`",
        ),
        ("train iql --dataset two-route --dataset-fraction 0 --offline-steps 10", 2, "dataset-fraction must be above"),
        ("data convert FILE", 2, "say what to write: add --out FILE.npz"),
        ("data convert FILE --out a.npz", 2, "cannot read the data set"),
        ("data convert FILE --to minari", 2, "Minari's store needs an id: add --id"),
        ("data convert FILE --to hdf5 --out a.npz", 2, "a.npz must end in .hdf5"),
        ("data make two-route --episodes x", 2, "x"),
        ("data make two-route --seed -1", 2, "seed must not be negative, got -1"),
        ("data make two-route --sede 1", 2, "did you mean --seed?"),
        ("data make two-route --out FILE/below", 1, "cannot write to FILE/below"),
        ("data show", 2, "required"),
        (
            "data show two-route",
            2,
            "the data set two-route is not in data/: make it with `trimtab data make two-route`",
        ),
        ("data show nothing", 2, "no data set 'nothing': give a path, or one of the names of `trimtab list datasets`"),
        ("data show nothing.npz", 2, "no data set at"),
        ("data show FILE", 2, "cannot read the data set"),
        (
            "train iql --dataset cube-single-play-v0 --offline-steps 10",
            2,
            "the data set cube-single-play-v0 is not in data/: make it with `trimtab data make cube-single-play-v0`",
        ),
        (
            "train iql --dataset cube-single-play-singletask-task2-v0 --offline-steps 10",
            2,
            "make it with `trimtab data make cube-single-play-v0`",
        ),
        ("train iql --dataset two-rote --offline-steps 10", 2, "such as 'two-route'"),
        ("train iql --env trimtab/TwoRoute-v1 --steps 10", 2, "did you mean 'trimtab/TwoRoute-v0'?"),
    ],
)
def test_bad_input_is_one_line(cli, tmp_path, monkeypatch, args, status, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", "STORE")
    (tmp_path / "FILE").write_text("not an array")
    found = cli(*args.split())
    assert found.status == status
    assert len(found.errors) == 1, found.err
    assert text in found.errors[0]
    assert "Traceback" not in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_without_ogbench_it_names_the_extra(cli, tmp_path, monkeypatch):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ogbench", None)
    for args in ("data make cube-single-play-v0", "train sac --env cube-single-play-singletask-v0 --steps 10"):
        found = cli(*args.split())
        assert found.status == 2 and len(found.errors) == 1
        assert "pip install 'trimtab[ogbench]'" in found.errors[0]


@pytest.mark.parametrize("agent", ["iql", "chunky"])
@pytest.mark.thorough
def test_offline_to_online_in_two_route(cli, folder, tmp_path, monkeypatch, agent):
    monkeypatch.chdir(folder)
    extra = "--import chunky --agent.chunk 5" if agent == "chunky" else ""
    args = f"train {agent} {extra} --env trimtab/TwoRoute-v0 --dataset two-route-sparse --offline-steps 200"
    args = f"{args} --online-steps 300 {ARGS} --eval-freq 250 --num-envs 3 --out {tmp_path} --name run"
    found = cli(*args.split())
    assert found.status == 0, found.err
    run = tmp_path / "trimtab/TwoRoute-v0" / agent / "run"
    lines = metrics_of(run)
    assert any(",eval/success_rate," in line for line in lines)
    assert any(",rollout/ep_len_mean," in line for line in lines)
    assert cli("eval", run, "--episodes", 4).status == 0


@pytest.mark.thorough
def test_ogbench_from_data_to_evaluation(cli, tmp_path, monkeypatch):
    pytest.importorskip("ogbench", reason="needs the extra `ogbench`")
    monkeypatch.chdir(tmp_path)
    name = "pointmaze-medium-stitch-v0"
    assert cli("data", "make", name, "--episodes", 5).status == 0
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        f"{name}{end}" for end in ("-val.npz", ".json", ".npz")
    ]
    assert "task 5" in cli("data", "show", name).out
    task = "pointmaze-medium-stitch-singletask-task1-v0"
    found = cli(
        *f"train iql --dataset {task} --offline-steps 100 --eval-freq 100 --eval-episodes 1 {TINY} --name a".split()
    )
    assert found.status == 0, found.err
    run = tmp_path / "runs" / task / "iql" / "a"
    assert any(",eval/success_rate," in line for line in metrics_of(run))
    found = cli(*f"train iql --dataset {name} --offline-steps 100 {TINY}".split())
    assert found.status == 2 and "name a task with --env, such as pointmaze-medium-stitch-singletask-task1" in found.err
    online = (
        f"train iql --dataset {name} --env {task} --offline-steps 100 --online-steps 60 --eval-freq 0 {TINY} --name b"
    )
    found = cli(*online.split())
    assert found.status == 0, found.err
    assert ogbench.dataset_of(task) == name
