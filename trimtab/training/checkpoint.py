"""Checkpoints: never half-written, never loaded when damaged, and clear about a layout that does not fit."""

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from trimtab.core import RunError

KEEP = 2
"""Checkpoints kept: the newest and the one before, to fall back to."""


def layout(tree: Any) -> dict[str, list[Any]]:
    """Path of each leaf -> [shape, dtype]."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def save(folder: Path, trees: dict[str, Any], arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Writes `trees` (PyTrees of arrays), `arrays` and `meta` (JSON) to `folder`, all or nothing.

    Everything is written and synced under a temporary name, then renamed. `layout.json` holds the layout of each tree
    and the length and CRC-32 of each file. Raises `RunError` if the disk refuses.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tree in trees.items():
            with (temporary / f"{name}.eqx").open("wb") as file:
                eqx.tree_serialise_leaves(file, tree)
        with (temporary / "host.npz").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        files = {file.name: [file.stat().st_size, _crc(file)] for file in sorted(temporary.iterdir())}
        index = {"meta": meta, "layout": {name: layout(tree) for name, tree in trees.items()}, "files": files}
        (temporary / "layout.json").write_text(json.dumps(index))
        for file in temporary.iterdir():
            _sync(file)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"cannot write the checkpoint {folder}: {error.strerror or error}; earlier checkpoints are untouched: "
            "make room, then resume"
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint (unreadable index; a file missing, cut short or changed), or None."""
    try:
        files = json.loads((folder / "layout.json").read_text())["files"]
    except (OSError, ValueError, KeyError):
        return "layout.json is missing or damaged"
    for name, (size, crc) in files.items():
        file = folder / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} is truncated ({file.stat().st_size} of {size} bytes)"
        if _crc(file) != crc:
            return f"{name} is damaged (its checksum differs)"
    return None


def meta(folder: Path) -> dict[str, Any]:
    """The `meta` given to `save`."""
    return json.loads((folder / "layout.json").read_text())["meta"]


def load_tree(folder: Path, name: str, skeleton: Any) -> Any:
    """The tree `name` read into the structure of `skeleton`, whose arrays give shapes and dtypes.

    Raises `RunError` naming every path whose shape or dtype differs from the skeleton's.
    """
    saved = json.loads((folder / "layout.json").read_text())["layout"][name]
    wanted = layout(skeleton)
    differing = [
        f"{path}: {_describe(saved.get(path))} in the checkpoint, {_describe(wanted.get(path))} in this version"
        for path in sorted(saved.keys() | wanted.keys())
        if saved.get(path) != wanted.get(path)
    ]
    if differing:
        raise RunError(f"the checkpoint {folder} does not fit its config: {'; '.join(differing)}")
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), skeleton)
    with (folder / f"{name}.eqx").open("rb") as file:
        return eqx.tree_deserialise_leaves(file, like)


def saved_shapes(folder: Path, name: str, skeleton: Any) -> Any:
    """`skeleton` with the shapes that the checkpoint holds, where only their first axis differs (buffer rows)."""
    saved = json.loads((folder / "layout.json").read_text())["layout"][name]

    def shape(path: Any, leaf: Any) -> Any:
        found = saved.get(jax.tree_util.keystr(path))
        if found is None or found[1] != str(leaf.dtype) or found[0][1:] != list(leaf.shape[1:]):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.ShapeDtypeStruct(tuple(found[0]), leaf.dtype)

    return jax.tree_util.tree_map_with_path(shape, skeleton)


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The `arrays` given to `save`."""
    with np.load(folder / "host.npz", allow_pickle=False) as file:
        return dict(file)


def _describe(entry: list[Any] | None) -> str:
    return "absent" if entry is None else f"{entry[1]}{tuple(entry[0])}"


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Leftovers of interrupted writes are not among them."""
    found = (run / "checkpoints").glob("step_*")
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step_")))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and one line for each newer one that had to be passed over."""
    passed_over = []
    for folder in reversed(checkpoints(run)):
        reason = damage(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"checkpoint {folder.name} is not usable: {reason}; falling back to the one before")
    return None, passed_over


def prune(run: Path) -> None:
    """Removes all but the newest `KEEP` checkpoints."""
    for folder in checkpoints(run)[:-KEEP]:
        shutil.rmtree(folder, ignore_errors=True)
