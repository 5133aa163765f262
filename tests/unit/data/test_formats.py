"""One set of transitions in every format: the same arrays come back."""

from pathlib import Path

import jax
import numpy as np
import pytest

from trimtab.batches import Recorded, Transition
from trimtab.core import UsageError
from trimtab.data.minari_store import to_unit
from trimtab.data.readers import read_recorded, subset
from trimtab.data.write import convert, read_record, references, save_npz, save_record

ENV = "Pendulum-v1"
"""Its torque has bounds of 2, so that actions in its units differ from ours."""


def transitions(rows: int = 40) -> dict[str, np.ndarray]:
    """Episodes of Pendulum's shapes: every seventh row terminates, every fifth is cut by a time limit."""
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(rows, 3)).astype(np.float32)
    terminals = np.arange(rows) % 7 == 6
    timeouts = (np.arange(rows) % 5 == 4) & ~terminals
    timeouts[-1] = ~terminals[-1]
    after = np.concatenate([obs[1:], obs[:1]])
    ends = terminals | timeouts
    after[ends] = rng.normal(size=(ends.sum(), 3)).astype(np.float32)  # what an episode led to is in no other row
    return {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "next_observations": after,
        "terminals": terminals,
        "timeouts": timeouts,
    }


def assert_same(one: Recorded, two: Recorded) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A data set with a record, and an empty store of Minari's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    path = save_npz(tmp_path / "source.npz", transitions())
    save_record(path, {"env": ENV, "references": {"random": -1200.0, "expert": -150.0}})
    return path


@pytest.mark.parametrize("kind", ["npz", "npy", "hdf5", "minari"])
def test_round_trip(source, tmp_path, kind):
    given = transitions()
    before, spec = read_recorded(source)
    data: Transition = before.transition
    np.testing.assert_array_equal(data.obs, given["observations"])
    np.testing.assert_array_equal(data.discount, 1.0 - given["terminals"])  # never from time limits
    np.testing.assert_array_equal(before.last, given["terminals"] | given["timeouts"])
    out, name = (
        (None, "trimtab/there-v0") if kind == "minari" else (tmp_path / f"there.{kind}".removesuffix(".npy"), None)
    )
    there = convert(source, kind, out=out, name=name)
    after, spec_after = read_recorded(there)
    assert_same(before, after)
    assert (spec.obs, spec.action_size) == (spec_after.obs, spec_after.action_size)
    assert references(there) == (-1200.0, -150.0) and read_record(there)["env"] == ENV
    assert_same(before, read_recorded(convert(there, "npz", out=tmp_path / "back.npz"))[0])


def test_minari_reads_what_we_write(source):
    minari = pytest.importorskip("minari")
    convert(source, "minari", name="trimtab/there-v0")
    given, data = transitions(), minari.load_dataset("trimtab/there-v0")
    ends = np.flatnonzero(given["terminals"] | given["timeouts"]) + 1
    assert (data.total_episodes, data.total_steps) == (len(ends), 40)
    assert data.env_spec.id == ENV
    first = data[0]
    np.testing.assert_array_equal(first.observations[:-1], given["observations"][: ends[0]])
    np.testing.assert_array_equal(first.observations[-1], given["next_observations"][ends[0] - 1])
    np.testing.assert_allclose(first.actions, 2.0 * given["actions"][: ends[0]])  # in the environment's units
    assert data.action_space.high == 2.0
    assert minari.get_normalized_score(data, np.array(-150.0)) == 1.0


def test_what_minari_writes_is_read(tmp_path, monkeypatch):
    # A dict of observations, an episode without an end, and actions in [0, 4].
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(2)
    obs = [{"goal": rng.normal(size=(n + 1, 2)), "position": rng.normal(size=(n + 1, 3))} for n in (3, 2)]
    ends = {"terminations": [[0, 0, 1], [0, 0]], "truncations": [[0, 0, 0], [0, 0]]}
    buffers = [
        EpisodeBuffer(
            observations=obs[i],
            actions=np.full((n, 1), 3.0),
            rewards=np.arange(n) * 1.0,
            terminations=np.array(ends["terminations"][i], bool),
            truncations=np.array(ends["truncations"][i], bool),
        )
        for i, n in enumerate((3, 2))
    ]
    box = lambda n: spaces.Box(-np.inf, np.inf, (n,), np.float64)
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers(
            "here/it-v0",
            buffers,
            observation_space=spaces.Dict({"goal": box(2), "position": box(3)}),
            action_space=spaces.Box(0.0, 4.0, (1,), np.float64),
        )
    recorded, spec = read_recorded(tmp_path / "here" / "it-v0")
    data = recorded.transition
    assert spec.obs["goal"].shape == (2,) and spec.obs["position"].shape == (3,)
    np.testing.assert_array_equal(data.action, np.full((5, 1), 0.5))
    np.testing.assert_array_equal(data.discount, [1, 1, 0, 1, 1])
    np.testing.assert_array_equal(recorded.last, [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(
        data.next_obs["goal"], np.concatenate([o["goal"][1:] for o in obs]).astype(np.float32)
    )


def test_subset(source, tmp_path):
    whole, _ = read_recorded(source)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(40, 10, replace=False))
    part = subset(whole, 0.25)
    np.testing.assert_array_equal(part.transition.reward, np.asarray(whole.transition.reward)[chosen])
    # A row goes on only into the row that came next in the whole set.
    goes_on = np.append(np.diff(chosen) == 1, False) & ~np.asarray(whole.last)[chosen]
    np.testing.assert_array_equal(part.last, ~goes_on)
    assert goes_on.any() and not goes_on.all()
    written = convert(source, "npz", out=tmp_path / "part.npz", fraction=0.25)
    assert_same(part, read_recorded(written)[0])
    assert_same(part, read_recorded(source, fraction=0.25)[0])
    assert references(written) == (-1200.0, -150.0) and read_record(written)["fraction"] == 0.25
    other = convert(source, "npz", out=tmp_path / "other.npz", fraction=0.25, seed=1)
    assert not np.array_equal(read_recorded(other)[0].transition.reward, part.transition.reward)
    assert len(subset(whole, 1e-6).last) == 1
    for fraction in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="fraction must be above 0"):
            subset(whole, fraction)


# What is wrong with a file is said in one line that names it


def hdf5_file(path, arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["infos/qpos"] = np.zeros((3, 2))  # not ours
        file["metadata/algorithm"] = "SAC"
    return path


def test_d4rl_files(tmp_path):
    given = transitions()
    recorded, _ = read_recorded(hdf5_file(tmp_path / "a.hdf5", given))
    np.testing.assert_array_equal(recorded.transition.next_obs, given["next_observations"])
    # Without next observations the last row of what was cut is dropped: it led nowhere that is known.
    del given["next_observations"]
    recorded, _ = read_recorded(hdf5_file(tmp_path / "b.h5", given))
    kept = given["terminals"] | ~given["timeouts"]
    assert len(recorded.last) == kept.sum()
    np.testing.assert_array_equal(recorded.transition.discount, 1.0 - given["terminals"][kept])


def broken(**changes) -> dict[str, np.ndarray]:
    return {name: array for name, array in (transitions() | changes).items() if array is not None}


BAD = {
    "missing": (broken(rewards=None), r"lacks the array 'rewards'"),
    "nan": (broken(observations=np.where(np.arange(120).reshape(40, 3) == 64, np.nan, 0.0)), r"observations\[21, 1\]"),
    "short": (broken(actions=np.zeros((39, 1))), r"actions has 39 rows, observations has 40"),
    "strings": (broken(rewards=np.array([b"one"] * 40)), r"rewards holds strings, not numbers"),
    "empty": ({name: array[:0] for name, array in transitions().items()}, r"holds no transitions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_d4rl_files_are_named(tmp_path, case):
    arrays, text = BAD[case]
    path = hdf5_file(tmp_path / "bad.hdf5", arrays)
    with pytest.raises(UsageError, match=text) as caught:
        read_recorded(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_truncated_hdf5_file(tmp_path, kept):
    path = hdf5_file(tmp_path / "cut.hdf5", transitions())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UsageError, match="cannot read the data set") as caught:
        read_recorded(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def spoil(file, what: str) -> None:
    episode = file["episode_2"]
    if what == "no steps":
        for name in ("actions", "rewards", "terminations", "truncations"):
            del episode[name]
            episode[name] = np.zeros((0, 1) if name == "actions" else 0)
    elif what == "no rewards":
        del episode["rewards"]
    else:
        name, value = {
            "short actions": ("actions", np.zeros((1, 1))),
            "short observations": ("observations", np.zeros((2, 3))),
            "text": ("rewards", np.array([b"a"] * len(episode["rewards"]))),
            "nan": ("rewards", np.full(len(episode["rewards"]), np.nan)),
            "wide actions": ("actions", np.zeros((len(episode["rewards"]), 3))),
            "wide observations": ("observations", np.zeros((len(episode["rewards"]) + 1, 4))),
        }[what]
        del episode[name]
        episode[name] = value


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("no steps", "episode 2 has no steps"),
        ("no rewards", "cannot read Minari's data set"),
        ("short actions", "episode 2: actions has 1 rows"),
        ("short observations", "episode 2: observations has 2 rows, expected"),
        ("text", "rewards holds strings, not numbers"),
        ("nan", r"episode 2: rewards\[0\] is nan"),
        ("wide actions", r"episode 2: actions has rows of shape \(3,\), episodes before \(1,\)"),
        ("wide observations", r"episode 2: observations has rows of shape \(4,\), episodes before \(3,\)"),
        ("cut", "cannot read Minari's data set"),
        ("metadata", "cannot read Minari's data set"),
    ],
)
def test_a_bad_data_set_of_minari_is_named(source, what, text):
    h5py = pytest.importorskip("h5py")
    place = convert(source, "minari", name="trimtab/bad-v0")
    file = place / "data" / "main_data.hdf5"
    if what == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif what == "metadata":
        (place / "data" / "metadata.json").write_text("{")
    else:
        with h5py.File(file, "a") as opened:
            spoil(opened, what)
    with pytest.raises(UsageError, match=text) as caught:
        read_recorded(place)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def test_actions_that_do_not_fit_their_space():
    from gymnasium import spaces

    actions, box = np.zeros((3, 2)), lambda n, high: spaces.Box(-high, high, (n,), np.float32)
    with pytest.raises(UsageError, match="there: actions has 2 numbers a row, its action space 1"):
        to_unit(Path("there"), actions, box(1, 1.0))
    with pytest.raises(UsageError, match="there: the action space has no bounds"):
        to_unit(Path("there"), actions, box(2, np.inf))


def test_minari_is_not_written_twice_nor_with_gaps(source, tmp_path):
    pytest.importorskip("minari")
    place = convert(source, "minari", name="trimtab/there-v0")
    with pytest.raises(UsageError, match="exists already: choose another --id"):
        convert(source, "minari", name="trimtab/there-v0")
    with pytest.raises(UsageError, match="is no id of Minari's"):
        convert(source, "minari", name="there")
    gaps = transitions()
    gaps["next_observations"] = gaps["next_observations"] + 1.0
    with pytest.raises(UsageError, match=r"next_observations\[0\] is not the observation of the row after it"):
        convert(save_npz(tmp_path / "gaps.npz", gaps), "minari", name="trimtab/gaps-v0")
    assert place.exists() and not (place.parent / "gaps-v0").exists()
