"""Data sets on disk: what is read, where episodes end, and one clear line for everything that is wrong."""

from pathlib import Path

import numpy as np
import pytest

from trimtab.core import UsageError
from trimtab.data.readers import read_dataset, read_recorded
from trimtab.data.stream import Stream
from trimtab.envs import ogbench


def episodes() -> dict[str, np.ndarray]:
    """Seven rows: an episode that terminates after 3, one cut by a time limit after 2, one still going on after 2."""
    return {
        "observations": np.arange(14, dtype=np.float32).reshape(7, 2),
        "actions": np.linspace(-1.0, 1.0, 7, dtype=np.float32)[:, None],
        "rewards": np.arange(7, dtype=np.float32) * 10,
        "terminals": np.array([0, 0, 1, 0, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0], bool),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A folder of .npy files, or one .npz file, by the name of `path`."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return path


@pytest.mark.parametrize("name", ["data.npz", "folder"])
def test_next_observation_never_crosses_an_episode_end(tmp_path, name):
    given = episodes()
    data, spec = read_dataset(write(tmp_path / name, given))
    # Row 4 was cut and row 6 is the last: what they led to is not in the file. Row 2 terminated: it needs no successor.
    kept = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(data.obs, given["observations"][kept])
    np.testing.assert_array_equal(data.action, given["actions"][kept])
    np.testing.assert_array_equal(data.reward, given["rewards"][kept])
    np.testing.assert_array_equal(data.discount, [1, 1, 0, 1, 1])
    alive = [0, 1, 3, 5]
    np.testing.assert_array_equal(
        np.asarray(data.next_obs)[[0, 1, 3, 4]], given["observations"][[i + 1 for i in alive]]
    )
    assert all(leaf.dtype == np.float32 for leaf in (data.obs, data.action, data.reward, data.discount, data.next_obs))
    assert (spec.obs.shape, spec.action_size, spec.discrete) == ((2,), 1, False)
    assert (spec.action_low, spec.action_high) == ((-1.0,), (1.0,))


def test_terminated_last_row_is_kept(tmp_path):
    given = episodes()
    given["terminals"][-1] = True
    data, _ = read_dataset(write(tmp_path / "data.npz", given))
    np.testing.assert_array_equal(data.discount, [1, 1, 0, 1, 1, 0])


def test_discount_comes_from_terminals_never_from_timeouts(tmp_path):
    given = episodes()
    given["next_observations"] = given["observations"] + 100
    data, _ = read_dataset(write(tmp_path / "data.npz", given))
    np.testing.assert_array_equal(data.discount, [1, 1, 0, 1, 1, 1, 1])  # row 4 timed out, and is bootstrapped from
    np.testing.assert_array_equal(data.next_obs, given["next_observations"])
    assert len(data.reward) == 7


def test_masks_are_not_terminals(tmp_path):
    # As OGBench and FQL keep them: terminals end every trajectory, masks are 0 where nothing comes after.
    given = episodes()
    wanted, _ = read_recorded(write(tmp_path / "a.npz", given | {"next_observations": given["observations"] + 100}))
    masked = given | {"masks": 1.0 - given["terminals"], "next_observations": given["observations"] + 100}
    masked["terminals"] = (given["terminals"] | masked.pop("timeouts")).astype(np.float32)
    folder = write(tmp_path / "folder", masked)
    found, _ = read_recorded(folder)
    np.testing.assert_array_equal(found.transition.discount, [1, 1, 0, 1, 1, 1, 1])  # row 4 was cut
    np.testing.assert_array_equal(found.last, [0, 0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(found.transition.discount, wanted.transition.discount)
    np.testing.assert_array_equal(Stream(folder).gather(np.arange(7)).discount, wanted.transition.discount)
    # Without next observations the last row of what was cut is dropped, as ever.
    del masked["next_observations"]
    short, _ = read_recorded(write(tmp_path / "b.npz", masked))
    plain, _ = read_recorded(write(tmp_path / "c.npz", given))
    for name in ("reward", "discount", "next_obs"):
        np.testing.assert_array_equal(getattr(short.transition, name), getattr(plain.transition, name))
    np.testing.assert_array_equal(short.last, plain.last)


def test_a_recording_may_go_on_after_its_task_ended(tmp_path):
    given = episodes()
    masked = given | {"masks": np.array([1, 0, 0, 1, 1, 1, 1], np.float32)}  # solved at row 1, and until row 2
    masked["next_observations"] = given["observations"] + 100
    masked["terminals"] = (given["terminals"] | masked.pop("timeouts")).astype(np.float32)
    found, _ = read_recorded(write(tmp_path / "a.npz", masked))
    np.testing.assert_array_equal(found.last, [0, 0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(found.ended, [0, 1, 1, 0, 1, 0, 1])


def test_ends_of_episodes(tmp_path):
    # Kept are rows 0 to 3 and 5. Row 3 is the last that is known of the episode that was cut, row 5 of the data.
    given = episodes()
    recorded, _ = read_recorded(write(tmp_path / "a.npz", given))
    np.testing.assert_array_equal(recorded.last, [0, 0, 1, 1, 1])
    # With next observations all rows are kept, and timeouts say where episodes were cut.
    after = np.concatenate([given["observations"][1:], [[50.0, 50.0]]]).astype(np.float32)
    after[2] = 60.0
    given["next_observations"] = after
    recorded, _ = read_recorded(write(tmp_path / "b.npz", given))
    np.testing.assert_array_equal(recorded.last, [0, 0, 1, 0, 1, 0, 1])
    # Without timeouts the next row tells: where it begins elsewhere, another episode has begun.
    del given["timeouts"]
    after[4] = 70.0
    recorded, _ = read_recorded(write(tmp_path / "c.npz", given))
    np.testing.assert_array_equal(recorded.last, [0, 0, 1, 0, 1, 0, 1])
    np.testing.assert_array_equal(recorded.transition.discount, [1, 1, 0, 1, 1, 1, 1])


def test_truncations_is_another_name_of_timeouts(tmp_path):
    given = episodes()
    first, _ = read_dataset(write(tmp_path / "a.npz", given))
    given["truncations"] = given.pop("timeouts")
    second, _ = read_dataset(write(tmp_path / "b.npz", given))
    np.testing.assert_array_equal(first.next_obs, second.next_obs)


def test_other_number_types_are_read(tmp_path):
    given = {name: array.astype(np.int64 if name == "rewards" else np.float64) for name, array in episodes().items()}
    data, _ = read_dataset(write(tmp_path / "data.npz", given))
    np.testing.assert_array_equal(data.reward, [0, 10, 20, 30, 50])
    np.testing.assert_array_equal(data.discount, [1, 1, 0, 1, 1])


def changed(**arrays) -> dict[str, np.ndarray]:
    return {name: array for name, array in (episodes() | arrays).items() if array is not None}


def at(name: str, index: int | tuple[int, ...], value: float) -> dict[str, np.ndarray]:
    array = episodes()[name].astype(np.float64)
    array[index] = value
    return changed(**{name: array})


BAD = {
    "nan obs": (at("observations", (3, 1), np.nan), r"observations\[3, 1\] is nan"),
    "infinite reward": (at("rewards", 4, np.inf), r"rewards\[4\] is inf"),
    "terminals of 255": (at("terminals", 2, 255), r"terminals\[2\] is 255.0, expected 0 or 1"),
    "half a mask": (changed(masks=np.full(7, 0.5)), r"masks\[0\] is 0.5, expected 0 or 1"),
    "rewards in parts": (changed(**{"rewards/a": np.zeros(7)}), r"rewards has parts \(rewards/a\), expected one array"),
    "nan action": (at("actions", (5, 0), np.nan), r"actions\[5, 0\] is nan"),
    "beyond float32": (at("rewards", 2, 1e39), r"rewards\[2\] is (inf|1e\+39)"),
    "action out of range": (at("actions", (6, 0), 1.5), r"actions\[6, 0\] is outside \[-1, 1\]"),
    "no rewards": (changed(rewards=None), r"lacks the array 'rewards'"),
    "no terminals": (changed(terminals=None), r"lacks the array 'terminals'"),
    "no end of episodes": (changed(timeouts=None), r"needs next_observations, or timeouts"),
    "strings": (changed(rewards=np.array(list("abcdefg"))), r"rewards holds strings, not numbers"),
    "complex": (changed(rewards=np.zeros(7, complex)), r"rewards holds complex128, not numbers"),
    "short rewards": (changed(rewards=np.zeros(6)), r"rewards has 6 rows, observations has 7"),
    "rewards of rank 2": (changed(rewards=np.zeros((7, 1))), r"rewards has shape \(7, 1\), expected 1 axis"),
    "timeouts of rank 2": (changed(timeouts=np.zeros((7, 1))), r"timeouts has shape \(7, 1\), expected 1 axis"),
    "actions of rank 1": (changed(actions=np.zeros(7)), r"actions has shape \(7,\), expected 2 axes"),
    "images": (changed(observations=np.zeros((7, 4, 4))), r"observations has shape \(7, 4, 4\), expected 2 axes"),
    "no axis": (changed(rewards=np.float32(1)), r"rewards has shape \(\), expected 1 axis"),
    "no axis at all": (changed(observations=np.float32(1)), r"observations has shape \(\), expected 2 axes"),
    "next of another shape": (
        changed(next_observations=np.zeros((7, 3))),
        r"next_observations has shape \(7, 3\), observations \(7, 2\)",
    ),
    "empty": ({name: array[:0] for name, array in episodes().items()}, r"holds no transitions"),
    "nothing is left": ({name: array[3:4] for name, array in episodes().items()}, r"holds no transitions"),
    "no columns": (changed(actions=np.zeros((7, 0))), r"actions has shape \(7, 0\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_named(tmp_path, case):
    arrays, text = BAD[case]
    path = write(tmp_path / "data.npz", arrays)
    with pytest.raises(UsageError, match=text) as caught:
        read_dataset(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def objects(path: Path) -> Path:
    np.savez(path, **changed(rewards=np.array([{}] * 7, object)))
    return path


def text(path: Path) -> Path:
    path.write_text("not an array")
    return path


def cut(path: Path) -> Path:
    write(path, episodes())
    path.write_bytes(path.read_bytes()[:700])
    return path


def one_array(path: Path) -> Path:
    path = path.with_suffix(".npy")
    np.save(path, np.zeros((3, 2)))
    return path


def nothing(path: Path) -> Path:
    path.touch()
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def folder_of_files(path: Path) -> Path:
    path.mkdir()
    for name in ("two.npz", "two.hdf5", "notes.txt"):
        (path / name).touch()
    return path


def broken_folder(path: Path) -> Path:
    write(path.with_suffix(""), episodes())
    (path.with_suffix("") / "rewards.npy").write_bytes(b"\x93NUMPY")
    return path.with_suffix("")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (objects, "rewards holds Python objects, not numbers"),
        (text, "cannot read"),
        (cut, "cannot read"),
        (one_array, "is a single array"),
        (nothing, "cannot read"),
        (empty_folder, "without arrays that a data set has: give an .npz or .hdf5 file, or a folder"),
        (folder_of_files, r"without arrays that a data set has: give a file in it, such as .*data\.npz/two\.hdf5"),
        (broken_folder, "cannot read the data set .*: rewards: "),
    ],
)
def test_unreadable_files_are_named(tmp_path, make, said):
    path = make(tmp_path / "data.npz")
    with pytest.raises(UsageError, match=said) as caught:
        read_dataset(path)
    assert str(path) in str(caught.value)
    if path.is_dir():
        with pytest.raises(UsageError, match=r"rewards: |no folder of \.npy files") as caught:
            Stream(path)
        assert str(path) in str(caught.value)


def test_no_such_path(tmp_path):
    with pytest.raises(UsageError, match=r"no data set at .*nowhere\.npz"):
        read_dataset(tmp_path / "nowhere.npz")


def test_what_is_wrong_with_a_file_of_ogbench_names_it(tmp_path, monkeypatch):
    def refuse(name, arrays):
        raise UsageError("it has qpos of 4 numbers, the data set has 3")

    given = episodes() | {"qpos": np.zeros((7, 3)), "terminals": np.array([0, 0, 1, 1, 0, 0, 1])}
    del given["rewards"], given["timeouts"]
    path, task = write(tmp_path / "pointmaze-medium-navigate-v0.npz", given), "pointmaze-medium-navigate-singletask-v0"
    monkeypatch.setattr(ogbench, "task_rewards", refuse)
    with pytest.raises(UsageError, match="qpos of 4 numbers") as caught:
        read_recorded(path, task)
    assert str(path) in str(caught.value)
    monkeypatch.setattr(ogbench, "task_rewards", lambda name, arrays: (np.zeros(7), np.ones(7)))
    with pytest.raises(UsageError, match=r"terminals\[3\] ends a trajectory of one state") as caught:
        read_recorded(path, task)
    assert str(path) in str(caught.value)
