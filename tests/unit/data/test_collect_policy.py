"""Data sets from a learner's stages, with a learner made of arithmetic."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.data import collect_policy
from trimtab.data.collect_policy import NAMES, Learner, Training, collect, episode_returns
from trimtab.data.readers import read_recorded
from trimtab.data.write import save_npz

ENV = "Pendulum-v1"


def learner(path: Path, evaluations: list[tuple[int, float]]) -> Learner:
    """One whose policy of step n always answers n / 1000, and half of that with exploration noise."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(1000, 3)).astype(np.float32)
    after = np.concatenate([obs[1:], obs[:1]])
    after[199::200] = 7.0  # time limits: the next row begins elsewhere
    constant = lambda value: lambda obs, t: np.full((1, 1), value, np.float32)
    rows = {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (1000, 1)).astype(np.float32),
        "rewards": -np.ones(1000, np.float32),
        "next_observations": after,
        "terminals": np.arange(1000) == 250,
    }
    return Learner(
        path=path,
        agent="arithmetic",
        evaluations=tuple(evaluations),
        explorer=lambda step: constant(step / 2000),
        policy=lambda step: constant(step / 1000),
        replay=lambda: rows,
    )


@pytest.fixture
def make(tmp_path):
    """`make(stage, ...)`: arrays and record of a stage of Pendulum, with references as if they were found before."""
    asked: list[Training] = []
    run = tmp_path / "runs" / "Pendulum-v1" / "sac" / "run"
    run.mkdir(parents=True)
    (run / "references.json").write_text(json.dumps({"random": -1200.0, "expert": -150.0, "episodes": 50}))
    evaluations = [(100, -1190.0), (300, -860.0), (400, -840.0), (600, -900.0), (1000, -155.0)]

    def made(stage: str, rows: int | None = 450, evaluations: list[tuple[int, float]] = evaluations, **options):
        def train(training: Training, runs: Path) -> Learner:
            asked.append(training)
            return learner(run, evaluations)

        options = {"steps": 1000, "seed": 3, **options}
        name = f"mujoco/pendulum/{stage}-v0"
        return collect(name, rows=rows, runs=tmp_path / "runs", train=train, tick=lambda *_: None, **options)

    made.asked, made.run = asked, run
    return made


def test_medium_is_the_first_policy_at_a_third_of_the_way(make):
    # A third of the way from -1200 to -150 is -850: step 400 is the first there, though 600 is below again.
    arrays, record = make("medium")
    np.testing.assert_array_equal(arrays["actions"], np.full((450, 1), 0.2, np.float32))  # with noise: 400 / 2000
    assert record["behaviour"]["step"] == 400 and record["behaviour"]["agent"] == "arithmetic"
    assert record["references"] == {"random": -1200.0, "expert": -150.0, "episodes": 50}
    assert record["env"] == ENV
    assert make.asked == [Training(ENV, 1000, 3, 100)]


def test_rows_are_whole_episodes_but_for_the_last(make):
    arrays, record = make("expert")
    np.testing.assert_array_equal(arrays["actions"], np.full((450, 1), 0.5, np.float32))
    assert list(np.flatnonzero(arrays["timeouts"])) == [199, 399, 449] and not arrays["terminals"].any()
    within = ~arrays["timeouts"][:-1]
    np.testing.assert_array_equal(arrays["next_observations"][:-1][within], arrays["observations"][1:][within])
    assert (arrays["next_observations"][[199, 399]] != arrays["observations"][[200, 400]]).any(1).all()
    # The 50 steps at the end are no episode, and do not count in the mean.
    returns = [arrays["rewards"][:200].sum(), arrays["rewards"][200:400].sum()]
    assert record["behaviour"]["mean_return"] == pytest.approx(np.mean(returns), rel=1e-5)


def test_random_acts_uniformly(make):
    arrays, record = make("random", rows=600)
    assert record["behaviour"]["agent"] == "uniform" and record["behaviour"]["step"] == 0
    assert np.abs(arrays["actions"]).max() <= 1.0
    assert abs(arrays["actions"].mean()) < 0.07 and abs(arrays["actions"].std() - 3**-0.5) < 0.03
    again, _ = make("random", rows=600)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name])


def test_replay_is_what_was_stored_until_medium(make, tmp_path):
    arrays, record = make("medium-replay", rows=None)
    assert len(arrays["rewards"]) == 400 and record["behaviour"]["step"] == 400
    assert list(np.flatnonzero(arrays["timeouts"])) == [199, 399]
    assert list(np.flatnonzero(arrays["terminals"])) == [250]
    recorded, _ = read_recorded(save_npz(tmp_path / "replay.npz", arrays))
    assert list(np.flatnonzero(recorded.last)) == [199, 250, 399]
    assert list(np.flatnonzero(np.asarray(recorded.transition.discount) == 0)) == [250]


def test_references_are_found_once(make, monkeypatch):
    monkeypatch.setattr(collect_policy, "REFERENCE_EPISODES", 3)
    (make.run / "references.json").unlink()
    _, record = make("expert", rows=200)
    found = record["references"]
    assert found["episodes"] == 3 and -2000 < found["random"] < -900 and np.isfinite(found["expert"])
    assert json.loads((make.run / "references.json").read_text()) == found


def test_a_learner_that_got_nowhere_is_refused(make):
    (make.run / "references.json").write_text(json.dumps({"random": -1200.0, "expert": -1300.0, "episodes": 50}))
    with pytest.raises(UsageError, match=r"learnt nothing: .* give more --steps"):
        make("medium")


def test_returns_of_whole_episodes():
    arrays = {
        "rewards": np.array([1, 2, 4, 8], np.float32),
        "terminals": np.array([0, 1, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 1], bool),
    }
    np.testing.assert_array_equal(episode_returns(arrays), [3.0])
    np.testing.assert_array_equal(episode_returns(jax.tree.map(lambda x: x[2:], arrays)), [12.0])
    arrays["terminals"][3], arrays["timeouts"][3] = True, False
    np.testing.assert_array_equal(episode_returns(arrays), [3.0, 12.0])


def test_names():
    assert "mujoco/hopper/medium-replay-v0" in NAMES and "mujoco/halfcheetah/expert-v0" in NAMES
