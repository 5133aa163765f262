"""Data sets larger than memory: a folder of `.npy` files stays on disk, and batches are gathered from it on the host.

A block of batches at a time goes to the device. Which rows an update gets is a function of (seed, update) alone, and
the same as for a data set in memory: a run that was interrupted goes on with the same bits.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from trimtab.batches import Transition
from trimtab.core import AbstractPolicy, UsageError
from trimtab.data.readers import check, npy_files, opened, release, spec_of, tree
from trimtab.data.sources import AbstractSource

MODES = ("auto", "always", "never")
"""When data stay on disk; auto: when they would fill more than `SHARE` of the machine's memory."""

SHARE = 0.25

ROWS = 2**14
"""Rows of a block, about: more are copied less often but take more memory."""

PIECE = 256
"""Rows gathered before their pages are given back."""


def wanted(path: Path, mode: str) -> bool:
    """Whether the data set at `path` is to stay on disk. Raises `UsageError` for an unknown mode."""
    if mode not in MODES:
        raise UsageError(f"unknown stream mode {mode!r}: choose {', '.join(MODES)}")
    if mode != "auto":
        return mode == "always"
    if not path.is_dir():
        return False
    size = sum(file.stat().st_size for file in npy_files(path).values())
    return size > SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Stream:
    """The arrays of a folder, on disk. Compared by identity, so that compiled functions may hold it as a constant."""

    def __init__(self, path: Path) -> None:
        """Opens the folder and checks every row, a block at a time.

        Raises `UsageError` for what is no such folder, or naming the array and the index of a bad number.
        """
        how = f"`trimtab data convert {path} --to npy --out FOLDER`"
        files = npy_files(path) if path.is_dir() else {}
        if not files:
            raise UsageError(f"{path} is no folder of .npy files, which alone can stay on disk: make one with {how}")
        arrays = {name: opened(path, name, partial(np.load, file, mmap_mode="r")) for name, file in files.items()}
        check(path, arrays)
        if not jax.tree.leaves(tree(arrays, "next_observations")):
            raise UsageError(f"{path} lacks the array 'next_observations', without which it cannot stay on disk: {how}")
        self._arrays, self.spec = arrays, spec_of(arrays)

    def __len__(self) -> int:
        return len(self._arrays["rewards"])

    @property
    def obs(self) -> Any:
        """All observations, on disk."""
        return tree(self._arrays, "observations")

    @property
    def rewards(self) -> np.ndarray:
        """All rewards, on disk."""
        return self._arrays["rewards"]

    def gather(self, rows: np.ndarray) -> Transition:
        """The transitions at `rows` (n,), as NumPy arrays in memory. No page of the files is kept."""

        def take(array: np.ndarray) -> np.ndarray:
            taken = np.empty((len(rows), *array.shape[1:]), np.float32)
            for i in range(0, len(rows), PIECE):  # the pages around a row are mapped with it
                taken[i : i + PIECE] = array[rows[i : i + PIECE]]
                release(array)
            return taken

        part = lambda name: jax.tree.map(take, tree(self._arrays, name))
        action = np.clip(part("actions"), -1.0, 1.0)
        # With masks, terminals are the ends of trajectories, cut or not: see `read_recorded`.
        discount = part("masks") if "masks" in self._arrays else np.float32(1.0) - part("terminals")
        host: Any = Transition  # whose annotations promise the JAX arrays that agents get
        return host(part("observations"), action, part("rewards"), discount, part("next_observations"))


class StreamState(eqx.Module):
    """A block of batches, and which of them is in use."""

    block: Any
    """a `Transition` of the rows of all its batches, one after the other."""
    at: Int[Array, ""]
    """-1 before the first update on the block."""


class StreamSource(AbstractSource):
    """A data set on disk. The loop hands its state a block at a time: see `Stream.gather`."""

    stream: Stream = eqx.field(static=True)
    batch_size: int = eqx.field(static=True)

    @property
    def updates(self) -> int:
        """Batches in a block."""
        return max(1, ROWS // self.batch_size)

    def init(self, key: PRNGKeyArray) -> StreamState:
        """An empty block: the loop hands over one before it is read."""
        n, spec = self.updates * self.batch_size, self.stream.spec
        row = (spec.zero_obs(), spec.zero_action(), jnp.zeros(()), jnp.zeros(()), spec.zero_obs())
        block = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), row)
        return StreamState(Transition(*block), jnp.int32(-1))

    def receive(self, state: StreamState, items: Any) -> StreamState:
        """A new block."""
        return StreamState(items, jnp.int32(-1))

    def advance(self, explorer: AbstractPolicy, state: StreamState, key: PRNGKeyArray) -> StreamState:
        """On to the next batch."""
        return StreamState(state.block, state.at + 1)

    def batch(self, state: StreamState, key: PRNGKeyArray) -> Transition:
        """The batch of this update; before the first one any of the block."""
        slot = jnp.where(state.at < 0, jr.randint(key, (), 0, self.updates), state.at)
        n = self.batch_size
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, slot * n, n), state.block)

    def stored(self, state: StreamState) -> StreamState:
        """Nothing of the block: it is gathered again."""
        return StreamState(jax.tree.map(lambda x: np.asarray(x)[:0], state.block), state.at)

    def restored(self, stored: StreamState) -> StreamState:
        """A block that does not depend on the run, for who looks at the data before the loop hands over another."""
        rows = np.random.default_rng(0).integers(0, len(self.stream), self.updates * self.batch_size)
        return StreamState(jax.tree.map(jnp.asarray, self.stream.gather(rows)), jnp.int32(-1))
