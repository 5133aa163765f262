"""Readers of data sets on disk, all into the same `Transition` arrays."""

import mmap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.batches import Recorded, Transition
from trimtab.core import Spec, UsageError
from trimtab.data import hdf5, minari_store
from trimtab.envs import ogbench

NEEDED = ("observations", "actions", "rewards", "terminals")
"""Arrays that every data set holds; OGBench's have states in place of rewards."""

_OPTIONAL = ("next_observations", "timeouts", "truncations", "masks")
_STATES = ("qpos", "qvel", "button_states")
_KNOWN = NEEDED + _OPTIONAL + _STATES
_RANKS = {"observations": 2, "actions": 2, "next_observations": 2, "qpos": 2, "qvel": 2, "button_states": 2}
"""Axes of an array; those not named have one."""

_FLAGS = ("terminals", "timeouts", "truncations", "masks")
"""Arrays of 0 and 1."""

_DICTS = ("observations", "next_observations")
"""Arrays that may have parts."""

BLOCK = 2**16
"""Rows looked at together: what is checked may be larger than memory."""


def read_dataset(path: str | Path) -> tuple[Transition, Spec]:
    """The transitions of a data set and the `Spec` it implies: see `read_recorded`."""
    recorded, spec = read_recorded(path)
    return recorded.transition, spec


def read_recorded(path: str | Path, task: str | None = None, fraction: float = 1.0) -> tuple[Recorded, Spec]:
    """A data set of float32 arrays with the ends of its episodes, and the `Spec` it implies; actions must be in
    [-1, 1].

    `path` is an `.npz` file, an `.hdf5` file or a folder of `.npy` files with D4RL's names: `observations` (n, obs),
    `actions` (n, act), `rewards` (n,), `terminals` (n,) 1 where the environment itself ended the episode, and either
    `next_observations` (n, obs) or `timeouts` (n,) 1 where it was cut. Without `next_observations` the next row's
    observation is taken and the last row of each episode that was cut is dropped, as its true next observation is not
    known. With `next_observations` and no `timeouts`, an episode ends where the next row begins at another observation.
    Where there are `masks` (n,), as in the arrays of OGBench and FQL, they are 0 where the environment ended the
    episode, and `terminals` is 1 on the last row of every trajectory, cut or not. Or `path` is a folder of Minari's
    store, whose actions are scaled from the bounds of its action space.

    A file of OGBench (`qpos`, no `rewards`, `terminals` on the last row of each trajectory) is read as OGBench reads
    it: that last row is dropped, and rewards and discounts are those of `task`, one of its names with `-singletask`.
    With `fraction` below 1 only that share of the rows is kept: see `subset`.
    Raises `UsageError` naming the array and the index of the first bad number.
    """
    path = Path(path)
    arrays = read_arrays(path)
    if "rewards" not in arrays and "qpos" in arrays:
        if task is None or not ogbench.is_task(task):
            raise UsageError(f"{path} holds no rewards: name a task with --env, such as {_example(path)}")
        arrays = _of_ogbench(path, arrays, task)
    recorded, spec = transitions_of(path, arrays)
    return (recorded if fraction == 1.0 else subset(recorded, fraction)), spec


def subset(recorded: Recorded, fraction: float, seed: int = 0) -> Recorded:
    """`fraction` of the rows (at least one), drawn uniformly without replacement and kept in their order.

    Two rows that followed one another still do; where rows between were left out, the one before is the last of its
    episode, so that no window and no next action reaches across. Raises `UsageError` for a share outside (0, 1].
    """
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"fraction must be above 0 and at most 1, got {fraction}")
    last = np.asarray(recorded.last)
    count = max(1, round(fraction * len(last)))
    rows = np.sort(np.random.default_rng(seed).choice(len(last), count, replace=False))
    kept = jax.tree.map(lambda x: x[rows], recorded.transition)
    return Recorded(kept, jnp.asarray(last[rows] | np.append(np.diff(rows) != 1, True)))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data set on disk, checked: numbers only, all finite, as many rows in each, actions in [-1, 1],
    flags 0 or 1.

    The parts of an observation that is a dict are named `observations/PART`. Raises `UsageError` naming the array and
    the index of the first bad number.
    """
    arrays = _load(path)
    check(path, arrays)
    return arrays


def check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raises `UsageError` naming the array and the index of what is wrong in `arrays`, which were read from `path`.

    Arrays nobody needs are removed from the dict.
    """
    roots = {_root(name) for name in arrays}
    if "rewards" in roots:  # then nobody needs what OGBench's rewards are made of
        for name in [name for name in arrays if _root(name) in _STATES]:
            del arrays[name]
    needed = [name for name in NEEDED if name != "rewards" or "qpos" not in roots]
    missing = [name for name in needed if name not in roots]
    if missing:
        raise UsageError(f"{path} lacks the array {missing[0]!r}: it needs {', '.join(needed)}")
    for name, array in arrays.items():
        if "/" in name and _root(name) not in _DICTS:
            raise UsageError(f"{path}: {_root(name)} has parts ({name}), expected one array")
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{path}: {name} holds {_kind(array)}, not numbers")
        rank = _RANKS.get(_root(name), 1)
        if array.ndim != rank or 0 in array.shape[1:]:
            raise UsageError(
                f"{path}: {name} has shape {array.shape}, expected {rank} {'axis' if rank == 1 else 'axes'}"
            )
    first = next(name for name in arrays if _root(name) == "observations")
    n = len(arrays[first])
    for name, array in arrays.items():
        if len(array) != n:
            raise UsageError(f"{path}: {name} has {len(array)} rows, {first} has {n}")
        wrong = _first(array, _not_finite)
        if wrong:
            raise UsageError(f"{path}: {name}{list(wrong)} is {array[wrong]}: remove or mend that row")
    if n == 0:
        raise UsageError(f"{path} holds no transitions")
    for name in _FLAGS:
        wrong = _first(arrays[name], lambda x: (x != 0) & (x != 1)) if name in arrays else ()
        if wrong:
            raise UsageError(f"{path}: {name}{list(wrong)} is {arrays[name][wrong]}, expected 0 or 1")
    outside = _first(arrays["actions"], lambda x: np.abs(x) > 1.0 + 1e-6)
    if outside:
        raise UsageError(f"{path}: actions{list(outside)} is outside [-1, 1]: divide by the action bound")


def _root(name: str) -> str:
    return name.split("/")[0]


def _kind(array: np.ndarray) -> str:
    """What an array without numbers holds, as a user would say it."""
    return (
        "strings"
        if array.dtype.kind in "SUO" and all(isinstance(x, str | bytes) for x in array.flat)
        else str(array.dtype)
    )


def _not_finite(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is what we look for
        return ~np.isfinite(x.astype(np.float32))


def _first(array: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray]) -> tuple[int, ...]:
    """The index of the first entry for which `wrong` holds, empty without one. Looks at a block of rows at a time."""
    for number, rows in enumerate(blocks(array)):
        found = np.argwhere(wrong(rows))
        if len(found):
            return (int(found[0][0]) + number * BLOCK, *(int(i) for i in found[0][1:]))
    return ()


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array, `BLOCK` at a time; what was looked at of a file is not kept in memory."""
    for start in range(0, len(array), BLOCK):
        yield array[start : start + BLOCK]
        release(array)


def release(array: np.ndarray) -> None:
    """Gives back the pages of a file that an array is mapped to; they are read again when they are needed."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def _example(path: Path) -> str:
    name = path.stem.removesuffix("-val")
    return name.replace("-v0", "-singletask-task1-v0") if ogbench.is_name(name) else "cube-single-play-singletask-v0"


def _told_apart(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays with `masks` in D4RL's names: `terminals` where the environment ended the episode, `timeouts` where a
    trajectory ended otherwise; and `final` where it ended, as a task may end without it. Others as they are."""
    if "masks" not in arrays:
        return dict(arrays)
    terminals, cut = arrays["masks"] == 0, arrays.get("timeouts", arrays.get("truncations"))
    final = arrays["terminals"].astype(bool) if cut is None else arrays["terminals"].astype(bool) | cut.astype(bool)
    kept = {name: array for name, array in arrays.items() if name != "masks"}
    return kept | {"terminals": terminals, "timeouts": final & ~terminals, "final": final}


def _of_ogbench(path: Path, arrays: dict[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    """The arrays of an OGBench file with the rewards of a task, as if it were one of ours.

    The last state of a trajectory is the next observation of the row before; no action was recorded that follows it.
    """
    try:
        rewards, masks = ogbench.task_rewards(task, arrays)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    final = arrays["terminals"].astype(bool).copy()
    final[-1] = True
    single = np.flatnonzero(final & np.append(True, final[:-1]))
    if len(single):
        raise UsageError(f"{path}: terminals[{single[0]}] ends a trajectory of one state, without a step: remove it")
    kept, after = ~final, np.append(False, ~final[:-1])
    return {
        "observations": arrays["observations"][kept],
        "actions": arrays["actions"][kept],
        "next_observations": arrays["observations"][after],
        "rewards": rewards[kept],
        "terminals": masks[kept] == 0.0,
        "timeouts": np.append(final[1:], True)[kept],
        "final": np.append(final[1:], True)[kept],
    }


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UsageError(f"no data set at {path}: give an .npz or .hdf5 file, or a folder of .npy files")
    if minari_store.is_dataset(path):
        return minari_store.read(path)
    if path.suffix in hdf5.SUFFIXES:
        return hdf5.read(path, _KNOWN)
    try:
        if path.is_dir():
            files = npy_files(path)
            if not files:
                raise UsageError(f"{path} is a folder without arrays that a data set has: {_within(path)}")
            return {name: opened(path, name, partial(np.load, file)) for name, file in files.items()}
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise UsageError(f"{path} is a single array: give the folder it is in, or an .npz file")
            read = lambda name: opened(path, name, lambda: file[name])
            return {name: read(name) for name in file.files if _root(name) in _KNOWN}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read the data set {path}: {error}") from error


def _within(folder: Path) -> str:
    """What to give in place of a folder that is no data set: the first file in it that may be one."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".npz", *hdf5.SUFFIXES))
    named = f"a file in it, such as {files[0]}" if files else "an .npz or .hdf5 file, or a folder of .npy files"
    return f"give {named}"


def opened(path: Path, name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
    """What `read` returns. Raises `UsageError` naming the array if it cannot."""
    try:
        return read()
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if str(error).startswith("Object arrays"):
            raise UsageError(f"{path}: {name} holds Python objects, not numbers") from error
        raise UsageError(f"cannot read the data set {path}: {name}: {error}") from error


def npy_files(folder: Path) -> dict[str, Path]:
    """The arrays of a folder of `.npy` files, by name; the parts of a dict of observations are in a folder below."""
    found = {file.relative_to(folder).with_suffix("").as_posix(): file for file in sorted(folder.rglob("*.npy"))}
    return {name: file for name, file in found.items() if _root(name) in _KNOWN}


def tree(arrays: Mapping[str, np.ndarray], name: str) -> Any:
    """The array `name`, or the dict of its parts `name/PART`."""
    if name in arrays:
        return arrays[name]
    found: dict[str, Any] = {}
    for key, array in arrays.items():
        if not key.startswith(f"{name}/"):
            continue
        *inner, leaf = key.split("/")[1:]
        place = found
        for part in inner:
            place = place.setdefault(part, {})
        place[leaf] = array
    return found


def spec_of(arrays: Mapping[str, np.ndarray]) -> Spec:
    """The `Spec` that the shapes of a data set imply."""
    act = arrays["actions"].shape[1]
    obs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], jnp.float32), tree(arrays, "observations"))
    return Spec(obs, act, False, (-1.0,) * act, (1.0,) * act)


def transitions_of(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Recorded, Spec]:
    """Checked arrays that hold rewards, as transitions, and the `Spec` they imply. Raises `UsageError` if it is not
    known where episodes were cut."""
    arrays = _told_apart(arrays)
    obs = jax.tree.map(lambda x: x.astype(np.float32), tree(arrays, "observations"))
    terminals = arrays["terminals"].astype(bool)
    cut = arrays.get("timeouts", arrays.get("truncations"))
    next_obs = jax.tree.map(lambda x: x.astype(np.float32), tree(arrays, "next_observations"))
    if jax.tree.leaves(next_obs):
        keep = np.ones(len(terminals), bool)
        shapes = lambda x: jax.tree.map(np.shape, x)
        if shapes(next_obs) != shapes(obs):
            raise UsageError(f"{path}: next_observations has shape {shapes(next_obs)}, observations {shapes(obs)}")
        if cut is None:
            pairs = zip(jax.tree.leaves(obs), jax.tree.leaves(next_obs), strict=True)
            cut = np.append(np.any([(after[:-1] != now[1:]).any(1) for now, after in pairs], axis=0), True)
    else:
        if cut is None:
            raise UsageError(f"{path} needs next_observations, or timeouts to tell where episodes were cut")
        next_obs = jax.tree.map(lambda x: np.concatenate([x[1:], x[-1:]]), obs)
        keep = terminals | ~cut.astype(bool)
        keep[-1] = terminals[-1]
        if not keep.any():
            raise UsageError(f"{path} holds no transitions whose next observation is known: give next_observations")
    kept = lambda x: jax.tree.map(lambda x: jnp.asarray(x[keep]), x)
    data = Transition(
        obs=kept(obs),
        action=kept(np.clip(arrays["actions"], -1.0, 1.0).astype(np.float32)),
        reward=kept(arrays["rewards"].astype(np.float32)),
        discount=kept(1.0 - terminals.astype(np.float32)),
        next_obs=kept(next_obs),
    )
    # Where a row was dropped, the one before it is the last of its episode.
    follows = np.append(keep[1:], False)
    last = (arrays.get("final", terminals | cut.astype(bool)) | ~follows)[keep]
    return Recorded(data, jnp.asarray(last)), spec_of(arrays)
