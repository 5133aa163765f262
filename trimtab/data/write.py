"""Writing data sets: the same transitions as one `.npz`, a folder of `.npy`, an `.hdf5` file, or in Minari's store.

Beside each lies its record, a JSON file that says how it was made: `NAME.json` beside `NAME.npz` and `NAME.hdf5`,
`dataset.json` in a folder. Minari keeps its own.
"""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.batches import Recorded
from trimtab.core import RunError, UsageError
from trimtab.data import hdf5, minari_store
from trimtab.data.readers import read_recorded, subset, tree

FORMATS = ("npz", "npy", "hdf5", "minari")
"""What a data set can be converted to."""

_VERSIONED = ("trimtab", "numpy", "jax", "mujoco", "gymnasium", "ogbench")


def versions() -> dict[str, str]:
    """Versions of what data sets are made with."""
    return {package: _version(package) for package in _VERSIONED}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def record_path(path: Path) -> Path:
    """Where the record of a data set lies."""
    return path / "dataset.json" if path.is_dir() else path.with_suffix(".json")


def read_record(path: Path) -> dict[str, Any]:
    """What is known of how a data set was made: among others `env`, the id of its environment, and `references`, the
    returns of a `random` and of an `expert` policy there. Empty if nothing is known.

    Raises `UsageError` if the record cannot be read.
    """
    if minari_store.is_dataset(path):
        found = minari_store.metadata(path)
        low, high = found.get("ref_min_score"), found.get("ref_max_score")
        references = {} if low is None or high is None else {"references": {"random": low, "expert": high}}
        env = found.get("env_spec")
        return references | {"env": json.loads(env)["id"] if env else None}
    file = record_path(path)
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
        if not isinstance(record, dict):
            raise ValueError("it holds no object")
        return record
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}, which says how the data set was made: {error}") from error


def references(path: Path) -> tuple[float, float] | None:
    """The returns of a random and of an expert policy that are stored with a data set, None without them."""
    found = read_record(path).get("references")
    return None if not found else (float(found["random"]), float(found["expert"]))


def arrays_of(recorded: Recorded) -> dict[str, np.ndarray]:
    """Transitions as arrays with D4RL's names, `timeouts` set where an episode ended without being terminated."""
    t, last = recorded.transition, np.asarray(recorded.last)
    terminals = np.asarray(t.discount) == 0.0
    return {
        **_named("observations", t.obs),
        "actions": np.asarray(t.action),
        "rewards": np.asarray(t.reward),
        **_named("next_observations", t.next_obs),
        "terminals": terminals,
        "timeouts": last & ~terminals,
    }


def _named(name: str, value: Any) -> dict[str, np.ndarray]:
    if isinstance(value, dict):
        return {key: array for part in value for key, array in _named(f"{name}/{part}", value[part]).items()}
    return {name: np.asarray(value)}


def convert(
    source: Path,
    kind: str,
    *,
    out: Path | None = None,
    name: str | None = None,
    task: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    command: str = "",
) -> Path:
    """Writes the data set at `source` as `kind`, one of `FORMATS`, and returns where it lies.

    `out` is the file or the folder to write, `name` the id in Minari's store. `task` gives a file of OGBench its
    rewards. With `fraction` below 1 only that share of the rows is written, drawn by `seed`. What is known of the
    source goes with it. Raises `UsageError` for what cannot be done, `RunError` if the disk refuses.
    """
    if kind not in FORMATS:
        raise UsageError(f"unknown format {kind!r}: choose {', '.join(FORMATS)}")
    if kind == "minari" and name is None:
        raise UsageError("Minari's store needs an id: add --id, such as --id mujoco/hopper/medium-v0")
    if kind != "minari" and (out is None or name is not None):
        raise UsageError("say where to write it: add --out PATH; --id is for --to minari")
    if kind == "minari" and out is not None:
        raise UsageError("Minari's store has its own folder, $MINARI_DATASETS_PATH: leave --out out")
    ending = {"npz": ".npz", "hdf5": ".hdf5"}.get(kind)
    if out is not None and ending is not None and out.suffix != ending:
        raise UsageError(f"{out} must end in {ending}")
    if out is not None and out.resolve() == source.resolve():
        raise UsageError(f"{out} is the source itself: choose another --out")
    recorded, _ = read_recorded(source, task)
    if fraction != 1.0:
        recorded = subset(recorded, fraction, seed)
    arrays, known = arrays_of(recorded), read_record(source)
    kept = {key: known[key] for key in ("name", "env", "references", "behaviour") if known.get(key) is not None}
    record = kept | {"env": task or kept.get("env"), "source": source.name, "command": command}
    record |= {"rows": len(arrays["rewards"]), "versions": versions()}
    if fraction != 1.0:
        record |= {"fraction": fraction, "seed": seed}
    if kind == "minari":
        assert name is not None
        return minari_store.write(name, arrays, tree(arrays, "observations"), tree(arrays, "next_observations"), record)
    assert out is not None
    if kind == "npy":
        save_folder(out, arrays, record)
    elif kind == "hdf5":
        replace(out, partial(hdf5.write, arrays=arrays))
        save_record(out, record)
    else:
        save_npz(out, arrays)
        save_record(out, record)
    return out


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """One compressed file, all or nothing."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    return replace(path, write)


def save_record(path: Path, record: dict[str, Any]) -> Path:
    """The record of the data set at `path`. Written last: where it lies, the data set is whole."""
    text = json.dumps(record, indent=2) + "\n"
    return replace(record_path(path), lambda temporary: temporary.write_text(text))


def save_folder(path: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> Path:
    """A folder of `.npy` files, all or nothing. Raises `UsageError` if there is something already."""
    if path.exists():
        raise UsageError(f"{path} exists already: choose another --out")

    def write(temporary: Path) -> None:
        for name, array in arrays.items():
            file = temporary / f"{name}.npy"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, array)
        (temporary / "dataset.json").write_text(json.dumps(record, indent=2) + "\n")

    return replace(path, write)


def replace(path: Path, write: Callable[[Path], Any]) -> Path:
    """What `write` puts at a temporary path, renamed to `path`. Raises `RunError` if the disk refuses."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise RunError(f"cannot write {path}: {error.strerror or error}; make room, or choose another --out") from error
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
