"""Minari's local store (the extra `minari`): reading its data sets, and writing ours into it.

This is the only file that imports the library. A data set `ID` lies in the folder `ID` of the store, which is
`$MINARI_DATASETS_PATH`, else `~/.minari/datasets`. Its actions are in the environment's units, ours in [-1, 1].
"""

import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from trimtab.core import RunError, UsageError
from trimtab.data import hdf5

ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
"""What an id looks like: `mujoco/hopper/medium-v0`."""


def library() -> Any:
    """The package `minari`. Raises `UsageError` with the command that installs it."""
    hdf5.library()  # without it Minari fails only later, and in its own words
    try:
        import minari
    except ImportError as error:
        raise UsageError(f"Minari is not installed ({error}): pip install 'trimtab[minari]'") from error
    return minari


def folder() -> Path:
    """Where Minari keeps its data sets."""
    given = os.environ.get("MINARI_DATASETS_PATH")
    return Path(given) if given else Path.home() / ".minari" / "datasets"


def is_dataset(path: Path) -> bool:
    """Whether a path is a data set of Minari's."""
    return (path / "data" / "metadata.json").is_file()


def metadata(path: Path) -> dict[str, Any]:
    """What Minari notes of a data set. Raises `UsageError` if it cannot be read."""
    file = path / "data" / "metadata.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data set, with D4RL's names and actions in [-1, 1].

    An episode that neither terminated nor was truncated ends like a truncated one. Raises `UsageError` naming the
    episode that is not whole.
    """
    try:
        data = library().MinariDataset(str(path / "data"))
        space, episodes = data.action_space, list(data.iterate_episodes())
    except UsageError:
        raise
    except Exception as error:  # Minari lets through whatever h5py, JSON and its own assertions raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UsageError(f"cannot read Minari's data set {path}: {reason}") from error
    if not isinstance(space, spaces.Box):
        raise UsageError(f"{path} has actions of {type(space).__name__}, which are not supported: use Box")
    parts: dict[str, list[np.ndarray]] = {}
    for episode in episodes:
        _add(parts, path, episode)
    arrays = {name: np.concatenate(rows) for name, rows in parts.items()}
    if not arrays:
        raise UsageError(f"{path} holds no episodes")
    if arrays["actions"].dtype.kind in "biuf":  # else the checks that follow say what is wrong
        arrays["actions"] = to_unit(path, arrays["actions"], space)
    return arrays


def _add(parts: dict[str, list[np.ndarray]], path: Path, episode: Any) -> None:
    n, where = len(episode.rewards), f"{path}: episode {episode.id}"
    if n == 0:
        raise UsageError(f"{where} has no steps: remove it")
    ends = np.asarray(episode.truncations).astype(bool).copy()
    ends[-1:] |= ~np.asarray(episode.terminations).astype(bool)[-1:]
    rows = {
        "actions": np.asarray(episode.actions).reshape(len(episode.actions), -1),
        "rewards": np.asarray(episode.rewards),
        "terminals": np.asarray(episode.terminations),
        "timeouts": ends,
    }
    for name, array in rows.items():
        if len(array) != n:
            raise UsageError(f"{where}: {name} has {len(array)} rows, rewards has {n}")
    for name, array in _leaves("observations", episode.observations):
        if len(array) != n + 1:
            raise UsageError(f"{where}: {name} has {len(array)} rows, expected {n + 1}: one more than rewards")
        rows[name] = array[:-1]
        rows[f"next_{name}"] = array[1:]
    for name, array in rows.items():
        first = parts.setdefault(name, [array])[0]
        if array.shape[1:] != first.shape[1:]:
            raise UsageError(f"{where}: {name} has rows of shape {array.shape[1:]}, episodes before {first.shape[1:]}")
        wrong = np.argwhere(~np.isfinite(array)) if array.dtype.kind == "f" else []
        if len(wrong):
            index = [int(i) for i in wrong[0]]
            raise UsageError(f"{where}: {name}{index} is {array[tuple(index)]}: remove or mend that episode")
        if array is not first:
            parts[name].append(array)


def _leaves(name: str, value: Any) -> list[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{name}/{key}", inner)]
    array = np.asarray(value)
    return [(name, array if array.ndim == 0 or array.dtype.kind not in "biuf" else array.reshape(len(array), -1))]


def to_unit(path: Path, actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """Actions in the units of `space` as float32 in [-1, 1]. Raises `UsageError` naming `path` if `space` has no bounds
    or is of another width."""
    low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UsageError(f"{path}: the action space has no bounds, so actions cannot be scaled to [-1, 1]")
    if actions.shape[1] != low.size:
        raise UsageError(f"{path}: actions has {actions.shape[1]} numbers a row, its action space {low.size}")
    middle, half = (high + low) / 2.0, (high - low) / 2.0
    return ((actions - middle) / half).astype(np.float32)


def write(
    name: str,
    arrays: dict[str, np.ndarray],
    observations: Any,
    next_observations: Any,
    record: dict[str, Any],
) -> Path:
    """Writes arrays with D4RL's names as the data set `name` of the store, all or nothing, and returns its folder.

    `record` may name the environment (`env`) and hold `references`. Where the environment is known, actions are written
    in its units: as float64 unless its bounds are 1, so that they come back as the same float32. Raises `UsageError` if
    `name` is no id, is taken, or an episode is no chain of observations.
    """
    if not ID.fullmatch(name):
        raise UsageError(f"{name!r} is no id of Minari's: it looks like mujoco/hopper/medium-v0")
    minari, place = library(), folder() / name
    if place.exists():
        raise UsageError(f"{place} exists already: choose another --id, or `minari delete {name}` first")
    from minari.data_collector.episode_buffer import EpisodeBuffer

    env, low, high = _bounds(record.get("env"), arrays["actions"].shape[1])
    unit = bool((low == -1.0).all() and (high == 1.0).all())
    kind = np.float32 if unit else np.float64
    actions = arrays["actions"] if unit else (high + low) / 2.0 + (high - low) / 2.0 * arrays["actions"].astype(kind)
    last = arrays["terminals"] | arrays["timeouts"]
    _check_chain(observations, next_observations, last)
    buffers, start = [], 0
    for end in np.flatnonzero(last) + 1:
        rows = slice(start, end)
        buffers.append(
            EpisodeBuffer(
                observations=_joined(observations, next_observations, rows),
                actions=actions[rows],  # pyright: ignore[reportArgumentType]
                rewards=arrays["rewards"][rows],  # pyright: ignore[reportArgumentType]
                terminations=arrays["terminals"][rows],  # pyright: ignore[reportArgumentType]
                truncations=arrays["timeouts"][rows],  # pyright: ignore[reportArgumentType]
            )
        )
        start = int(end)
    references = record.get("references") or {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Minari asks for an author, an e-mail and a link
            minari.create_dataset_from_buffers(
                name,
                buffers,
                env=env,
                observation_space=_space(observations),
                action_space=spaces.Box(low.astype(kind), high.astype(kind), dtype=kind),
                algorithm_name=record.get("behaviour", {}).get("agent"),
                ref_min_score=references.get("random"),
                ref_max_score=references.get("expert"),
                description=f"written by trimtab: {record.get('command', '')}",
                data_format="hdf5",
            )
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write {place}: {error.strerror or error}; make room") from error
        raise
    return place


def _bounds(env: str | None, size: int) -> tuple[str | None, np.ndarray, np.ndarray]:
    """The environment, if Gymnasium knows it, and the bounds of its actions: 1 without one."""
    import gymnasium

    if env is None or env not in gymnasium.registry:
        return None, -np.ones(size), np.ones(size)
    made = gymnasium.make(env, disable_env_checker=True)
    space = made.action_space
    made.close()
    assert isinstance(space, spaces.Box)
    return env, space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)


def _space(observations: Any) -> spaces.Space:
    if isinstance(observations, dict):
        return spaces.Dict({key: _space(inner) for key, inner in observations.items()})
    return spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32)


def _joined(observations: Any, next_observations: Any, rows: slice) -> Any:
    """The observations of one episode, the final one included."""
    if isinstance(observations, dict):
        return {key: _joined(observations[key], next_observations[key], rows) for key in observations}
    return np.concatenate([observations[rows], next_observations[rows][-1:]])


def _check_chain(observations: Any, next_observations: Any, last: np.ndarray) -> None:
    """Raises `UsageError` if an observation within an episode is not the one that the row before led to."""
    if isinstance(observations, dict):
        for key in observations:
            _check_chain(observations[key], next_observations[key], last)
        return
    broken = (next_observations[:-1] != observations[1:]).any(1) & ~last[:-1]
    if broken.any():
        raise UsageError(
            f"next_observations[{int(np.flatnonzero(broken)[0])}] is not the observation of the row after it, which "
            "Minari's episodes cannot hold: set timeouts where the rows do not go on, or convert to npz"
        )
