"""`trimtab eval RUN --ope …`: runs from data and from environments, and what cannot be done."""

import json
from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.cli.conftest import ONLINE, TINY, contents
from trimtab.cli.main import main
from trimtab.core import UsageError
from trimtab.envs import two_route

pytestmark = pytest.mark.thorough

FAST = "--ope-steps 100 --ope-hidden 8 8 --ope-behaviour-steps 50 --ope-members 2 --episodes 4"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Thirty scripted episodes of the world with two routes."""
    path = tmp_path_factory.mktemp("data") / "routes.npz"
    np.savez(path, **two_route.demonstrations(two_route.Behaviour(episodes=30), 0))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> dict[str, Path]:
    """IQL from data, once with and once without an environment; SAC and TD3 in the environment; a chunked flow."""
    out, world = tmp_path_factory.mktemp("runs"), "trimtab/TwoRoute-v0"
    offline = f"--dataset {data} --offline-steps 20 --eval-freq 0 {TINY} --out {out}"
    online = f"--env {world} --steps 60 --eval-freq 0 {ONLINE} --out {out}"
    for args in (
        f"train iql {offline} --name alone",
        f"train iql {offline} --env {world} --name both",
        f"train sac {online} --name sac",
        f"train td3 {online} --name td3",
    ):
        assert main(args.split()) == 0
    return {path.name: path for path in out.glob("**/*") if (path / "config.json").exists()}


def ope(run: Path) -> dict:
    return json.loads((run / "evaluation.json").read_text())["ope"]


def test_from_data_alone(runs, cli, data):
    found = cli("eval", runs["alone"], "--ope", "fqe", "wdr", *FAST.split())
    assert found.status == 0, found.err
    record = json.loads((runs["alone"] / "evaluation.json").read_text())
    assert record["env"] is None and "mean" not in record and record["checkpoint"] == "final"
    told = record["ope"]
    assert (told["kind"], told["gamma"], told["trajectories"], told["dataset"]) == ("stochastic", 0.99, 30, str(data))
    for name in ("fqe", "wdr"):
        assert told[name]["low"] <= told[name]["value"] <= told[name]["high"]
    assert len(told["fqe"]["members"]) == 2 and [step for step, _ in told["fqe"]["curve"]][-1] == 100
    assert 1.0 <= told["wdr"]["effective_last"] <= 30.0 and told["wdr"]["mean_ratio"] > 0
    assert "measured" not in told and "actual" not in found.out
    rewards = np.load(data)["rewards"]
    assert rewards.sum() / 30 < told["behaviour_return"] < 0  # discounted: less bad
    # Progress, one line a tenth, and both estimates in the answer.
    assert found.err.count("fqe ") >= 10 and found.err.count("behaviour ") >= 10
    assert "fqe     " in found.out and "wdr     " in found.out and "effective trajectories" in found.out


def test_beside_the_environment(runs, cli):
    found = cli("eval", runs["both"], "--ope", "fqe", *FAST.split())
    assert found.status == 0, found.err
    record = json.loads((runs["both"] / "evaluation.json").read_text())
    told = record["ope"]
    assert told["kind"] == "deployed" and "wdr" not in told and len(record["episodes"]) == 4
    # The deployed policy is measured on the same episodes: 60 steps at most, -1 each until the goal.
    gone = [(1 - 0.99 ** e["length"]) / 0.01 for e in record["episodes"]]
    cut = np.mean([not e["success"] for e in record["episodes"]])
    assert told["measured"]["cut"] == pytest.approx(cut)
    if cut == 1.0:
        assert told["measured"]["value"] == pytest.approx(-np.mean(gone), rel=1e-4)
    assert "actual" in found.out and "return  mean" in found.out


def test_estimates_outlive_an_evaluation_in_the_environment(runs, cli):
    assert cli("eval", runs["both"], "--ope", "fqe", *FAST.split()).status == 0
    told, file = ope(runs["both"]), runs["both"] / "evaluation.json"
    assert cli("eval", runs["both"], "--episodes", 2).status == 0
    assert ope(runs["both"]) == told and len(json.loads(file.read_text())["episodes"]) == 2
    # Those of another policy do not: here of one with other numbers of updates, as before a run was prolonged.
    file.write_text(json.dumps(json.loads(file.read_text()) | {"updates": 19}))
    assert cli("eval", runs["both"], "--episodes", 2).status == 0
    assert "ope" not in json.loads(file.read_text())


def test_the_same_seed_gives_the_same_numbers(runs, cli):
    answers = []
    for seed in (0, 0, 1):
        assert cli("eval", runs["alone"], "--ope", "fqe", "--seed", seed, *FAST.split()).status == 0
        answers.append(ope(runs["alone"])["fqe"]["value"])
    assert answers[0] == answers[1] != answers[2]


def test_runs_from_an_environment_take_a_data_set(runs, cli, data):
    found = cli("eval", runs["sac"], "--ope", "fqe", "wdr", "--dataset", data, *FAST.split())
    assert found.status == 0, found.err
    assert ope(runs["sac"])["kind"] == "stochastic" and ope(runs["sac"])["dataset"] == str(data)
    smooth = ["--ope-smoothing", "0.2", "--ope-gamma", "0.9"]
    found = cli("eval", runs["td3"], "--ope", "wdr", "--dataset", data, *smooth, *FAST.split())
    assert found.status == 0, found.err
    told = ope(runs["td3"])
    assert (told["kind"], told["gamma"]) == ("smoothed", 0.9) and "fqe" not in told


def test_python(runs, data):
    policy = trimtab.load(runs["sac"])
    settings = trimtab.ope.Settings(steps=20, hidden=(8,), members=1, gamma=0.5)
    found = trimtab.evaluate_offline(policy, data, settings=settings, quiet=True)
    assert list(found.estimates) == ["fqe"] and found.gamma == 0.5 and found.rows == len(np.load(data)["rewards"])
    with pytest.raises(UsageError, match="give one with --dataset PATH"):
        trimtab.evaluate_offline(policy)


WRONG = [
    ("alone", "--ope fqee", "unknown estimator 'fqee': did you mean 'fqe'?"),
    ("alone", "--ope magic", "unknown estimator 'magic': choose from fqe, wdr"),
    ("alone", "", "names no environment: give one with --env ID"),
    ("alone", "--ope fqe --video 1", "names no environment to film"),
    ("alone", "--dataset x.npz --env trimtab/TwoRoute-v0", "--dataset is for off-policy estimates: add --ope fqe"),
    ("sac", "--ope fqe", "was not trained on a data set: give one with --dataset PATH"),
    ("sac", "--ope fqe --dataset nowhere.npz", "no data set at", "nowhere.npz"),
    ("sac", "--ope fqe --dataset OTHER", "has obs 4, but the agent has 2"),
    ("td3", "--ope wdr --dataset DATA", "wdr needs a stochastic policy", "--ope-smoothing 0.1, or use --ope fqe"),
    ("alone", "--ope fqe --ope-steps 0", "ope-steps must be positive, got 0"),
    ("alone", "--ope fqe --ope-members 0", "ope-members must be positive, got 0"),
    ("alone", "--ope fqe --ope-gamma 1.5", "ope-gamma must be in [0, 1], got 1.5"),
    ("alone", "--ope fqe --ope-smoothing -1", "ope-smoothing must not be negative, got -1"),
    ("alone", "--ope fqe --ope-tau 0", "ope-tau must be in (0, 1], got 0"),
    ("alone", "--ope fqe --ope-hidden 0", "hidden widths must be at least 1, got 0"),
]


@pytest.mark.parametrize(("run", "args", "texts"), [(w[0], w[1], w[2:]) for w in WRONG], ids=[w[1] for w in WRONG])
def test_what_cannot_be_done_is_said_in_one_line(runs, cli, data, dataset, run, args, texts):
    before = contents(runs[run])
    words = args.replace("OTHER", str(dataset)).replace("DATA", str(data)).split()
    found = cli("eval", runs[run], *words)
    assert found.status == 2 and len(found.errors) == 1, found
    for text in texts:
        assert text in found.errors[0]
    assert contents(runs[run]) == before


def test_a_critic_that_diverges_is_no_result(runs, cli):
    before = contents(runs["alone"])
    found = cli("eval", runs["alone"], "--ope", "fqe", "--ope-learning-rate", "1e37", *FAST.split())
    assert found.status == 1 and "fqe diverged before update" in found.errors[-1], found
    assert "lower --ope-learning-rate" in found.errors[-1]
    assert contents(runs["alone"]) == before
