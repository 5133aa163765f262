"""Readers of data sets on disk, all into the same `Transition` arrays."""

import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from trimtab.batches import Recorded, Transition
from trimtab.core import Spec, UsageError
from trimtab.envs import ogbench

_NEEDED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("next_observations", "timeouts", "truncations")
_STATES = ("qpos", "qvel", "button_states")
_RANKS = {"observations": 2, "actions": 2, "next_observations": 2, "qpos": 2, "qvel": 2, "button_states": 2}
"""Axes of an array; those not named have one."""


def read_dataset(path: str | Path) -> tuple[Transition, Spec]:
    """The transitions of a data set and the `Spec` it implies: see `read_recorded`."""
    recorded, spec = read_recorded(path)
    return recorded.transition, spec


def read_recorded(path: str | Path, task: str | None = None) -> tuple[Recorded, Spec]:
    """A data set of float32 arrays with the ends of its episodes, and the `Spec` it implies; actions must be in
    [-1, 1].

    `path` is an `.npz` file or a folder of `.npy` files with D4RL's names: `observations` (n, obs), `actions` (n, act),
    `rewards` (n,), `terminals` (n,) 1 where the environment itself ended the episode, and either `next_observations`
    (n, obs) or `timeouts` (n,) 1 where it was cut. Without `next_observations` the next row's observation is taken and
    the last row of each episode that was cut is dropped, as its true next observation is not known. With
    `next_observations` and no `timeouts`, an episode ends where the next row begins at another observation.

    A file of OGBench (`qpos`, no `rewards`, `terminals` on the last row of each trajectory) is read as OGBench reads
    it: that last row is dropped, and rewards and discounts are those of `task`, one of its names with `-singletask`.
    Raises `UsageError` naming the array and the index of the first bad number.
    """
    path = Path(path)
    arrays = read_arrays(path)
    if "rewards" not in arrays and "qpos" in arrays:
        if task is None or not ogbench.is_task(task):
            raise UsageError(f"{path} holds no rewards: name a task with --env, such as {_example(path)}")
        arrays = _of_ogbench(arrays, task)
    return _transitions(path, arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data set on disk, checked: numbers only, all finite, as many rows in each, actions in [-1, 1].

    Raises `UsageError` naming the array and the index of the first bad number.
    """
    arrays = _load(path)
    if "rewards" in arrays:  # then nobody needs what OGBench's rewards are made of
        arrays = {name: array for name, array in arrays.items() if name in _NEEDED + _OPTIONAL}
    needed = [name for name in _NEEDED if name != "rewards" or "qpos" not in arrays]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise UsageError(f"{path} lacks the array {missing[0]!r}: it needs {', '.join(needed)}")
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise UsageError(f"{path}: {name} holds {array.dtype}, not numbers")
        rank = _RANKS.get(name, 1)
        if array.ndim != rank or 0 in array.shape[1:]:
            raise UsageError(
                f"{path}: {name} has shape {array.shape}, expected {rank} {'axis' if rank == 1 else 'axes'}"
            )
    n = len(arrays["observations"])
    for name, array in arrays.items():
        if len(array) != n:
            raise UsageError(f"{path}: {name} has {len(array)} rows, observations has {n}")
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is what we look for
            wrong = np.argwhere(~np.isfinite(array.astype(np.float32)))
        if len(wrong):
            raise UsageError(f"{path}: {name}{wrong[0].tolist()} is {array[tuple(wrong[0])]}: remove or mend that row")
    if n == 0:
        raise UsageError(f"{path} holds no transitions")
    outside = np.argwhere(np.abs(arrays["actions"]) > 1.0 + 1e-6)
    if len(outside):
        raise UsageError(f"{path}: actions{outside[0].tolist()} is outside [-1, 1]: divide by the action bound")
    return arrays


def _example(path: Path) -> str:
    name = path.stem.removesuffix("-val")
    return name.replace("-v0", "-singletask-task1-v0") if ogbench.is_name(name) else "cube-single-play-singletask-v0"


def _of_ogbench(arrays: dict[str, np.ndarray], task: str) -> dict[str, np.ndarray]:
    """The arrays of an OGBench file with the rewards of a task, as if it were one of ours.

    The last state of a trajectory is the next observation of the row before; no action was recorded that follows it.
    """
    rewards, masks = ogbench.task_rewards(task, arrays)
    final = arrays["terminals"].astype(bool).copy()
    final[-1] = True
    kept, after = ~final, np.append(False, ~final[:-1])
    return {
        "observations": arrays["observations"][kept],
        "actions": arrays["actions"][kept],
        "next_observations": arrays["observations"][after],
        "rewards": rewards[kept],
        "terminals": masks[kept] == 0.0,
        "timeouts": np.append(final[1:], True)[kept],
    }


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UsageError(f"no data set at {path}: give an .npz file or a folder of .npy files")
    known = _NEEDED + _OPTIONAL + _STATES
    try:
        if path.is_dir():
            return {name: np.load(path / f"{name}.npy") for name in known if (path / f"{name}.npy").exists()}
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise UsageError(f"{path} is a single array: give the folder it is in, or an .npz file")
            return {name: file[name] for name in known if name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read the data set {path}: {error}") from error


def _transitions(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Recorded, Spec]:
    obs, terminals = arrays["observations"].astype(np.float32), arrays["terminals"].astype(bool)
    cut = arrays.get("timeouts", arrays.get("truncations"))
    if "next_observations" in arrays:
        next_obs, keep = arrays["next_observations"].astype(np.float32), np.ones(len(obs), bool)
        if next_obs.shape != obs.shape:
            raise UsageError(f"{path}: next_observations has shape {next_obs.shape}, observations {obs.shape}")
        if cut is None:
            cut = np.append((next_obs[:-1] != obs[1:]).any(1), True)
    else:
        if cut is None:
            raise UsageError(f"{path} needs next_observations, or timeouts to tell where episodes were cut")
        next_obs = np.concatenate([obs[1:], obs[-1:]])
        keep = terminals | ~cut.astype(bool)
        keep[-1] = terminals[-1]
        if not keep.any():
            raise UsageError(f"{path} holds no transitions whose next observation is known: give next_observations")
    data = Transition(
        obs=jnp.asarray(obs[keep]),
        action=jnp.asarray(np.clip(arrays["actions"], -1.0, 1.0).astype(np.float32)[keep]),
        reward=jnp.asarray(arrays["rewards"].astype(np.float32)[keep]),
        discount=jnp.asarray(1.0 - terminals.astype(np.float32)[keep]),
        next_obs=jnp.asarray(next_obs[keep]),
    )
    # Where a row was dropped, the one before it is the last of its episode.
    follows = np.append(keep[1:], False)
    last = (terminals | cut.astype(bool) | ~follows)[keep]
    act = arrays["actions"].shape[1]
    spec = Spec(jax.ShapeDtypeStruct(obs.shape[1:], jnp.float32), act, False, (-1.0,) * act, (1.0,) * act)
    return Recorded(data, jnp.asarray(last)), spec
