"""HDF5 files with D4RL's names, by h5py (the extra `minari`). Groups such as `infos` and `metadata` are passed over."""

from pathlib import Path
from typing import Any

import numpy as np

from trimtab.core import UsageError

SUFFIXES = (".hdf5", ".h5")
"""Endings of the files that are read here."""


def library() -> Any:
    """The package `h5py`. Raises `UsageError` with the command that installs it."""
    try:
        import h5py
    except ImportError as error:
        raise UsageError("HDF5 files need h5py: pip install 'trimtab[minari]'") from error
    return h5py


def read(path: Path, known: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a file whose names begin with one of `known`; those in a group are named `GROUP/ARRAY`.

    Raises `UsageError` if the file cannot be read.
    """
    h5py, arrays = library(), {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and name.split("/")[0] in known:
            arrays[name] = np.asarray(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(take)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise UsageError(f"cannot read the data set {path}: {' '.join(str(error).split())}") from error
    return arrays


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One compressed array each. Raises `OSError` if the disk refuses."""
    with library().File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
