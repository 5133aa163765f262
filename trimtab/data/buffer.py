"""A ring buffer over any PyTree, on the device."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from trimtab.batches import AnyArray
from trimtab.core import UsageError


class Buffer(eqx.Module):
    """`capacity` rows of a PyTree; once full, the oldest row is overwritten first.

    Extend it only under a jit that donates it: then rows are written in place, otherwise each call copies the buffer.
    """

    rows: Any
    head: Int[Array, ""]
    """slot of the next row."""
    size: Int[Array, ""]
    """rows held, at most the capacity."""
    priority: Float[AnyArray, " capacity"] | None = None
    """how likely each row is to be drawn, in any unit; None: all alike. New rows get the largest there is."""

    @classmethod
    def create(cls, template: Any, capacity: int, *, prioritised: bool = False) -> "Buffer":
        """An empty buffer for rows shaped like `template` (no batch axis). Raises `UsageError` if capacity < 1."""
        if capacity < 1:
            raise UsageError(f"buffer_size must be at least 1, got {capacity}")
        rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), template)
        return cls(rows, jnp.int32(0), jnp.int32(0), jnp.zeros((capacity,)) if prioritised else None)

    @property
    def capacity(self) -> int:
        """Rows it can hold."""
        return jax.tree.leaves(self.rows)[0].shape[0]

    def extend(self, items: Any) -> "Buffer":
        """The buffer with `items` (leading axis n <= capacity) written after the newest row.

        Raises `UsageError` when n exceeds the capacity.
        """
        n = jax.tree.leaves(items)[0].shape[0]
        if n > self.capacity:
            raise UsageError(f"{n} rows do not fit a buffer of {self.capacity}: raise buffer_size")
        slots = (self.head + jnp.arange(n, dtype=jnp.int32)) % self.capacity
        rows = jax.tree.map(lambda r, x: r.at[slots].set(x.astype(r.dtype)), self.rows, items)
        priority = self.priority
        if priority is not None:
            largest = jnp.where(self.size > 0, priority.max(), 1.0)
            priority = priority.at[slots].set(largest)
        return Buffer(rows, (self.head + n) % self.capacity, jnp.minimum(self.size + n, self.capacity), priority)

    def sample(self, key: PRNGKeyArray, n: int) -> Any:
        """`n` rows drawn uniformly with replacement from those held."""
        slots = jr.randint(key, (n,), 0, jnp.maximum(self.size, 1))
        return jax.tree.map(lambda r: r[slots], self.rows)

    def slots(self, key: PRNGKeyArray, n: int) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
        """Slots of `n` rows, drawn with probabilities proportional to the priorities, and these probabilities in units
        of the uniform one; the draws are spread out over the sum of all (one in each n-th part of it).
        """
        if self.priority is None:
            return jr.randint(key, (n,), 0, jnp.maximum(self.size, 1)), jnp.ones((n,))
        # Two levels of sums, the first over blocks: one over all would lose the small priorities to rounding.
        width = math.isqrt(self.capacity - 1) + 1
        blocks = jnp.pad(jnp.asarray(self.priority), (0, width * width - self.capacity)).reshape(width, width)
        sums = blocks.sum(1)
        ends = jnp.cumsum(sums)
        mark = (jnp.arange(n, dtype=jnp.float32) + jr.uniform(key, (n,))) / n * ends[-1]
        block = jnp.minimum(jnp.searchsorted(ends, mark, side="right"), width - 1)
        inside = jnp.cumsum(blocks[block], axis=1)
        rest = mark - (ends[block] - sums[block])
        slot = block * width + (inside <= rest[:, None]).sum(1, dtype=jnp.int32)
        slot = jnp.minimum(slot, jnp.maximum(self.size - 1, 0))
        return slot, jnp.maximum(self.priority[slot] / ends[-1] * self.size.astype(jnp.float32), 1e-12)

    def reweighed(self, slots: Int[Array, " n"], priority: Float[Array, " n"]) -> "Buffer":
        """With new priorities of some rows."""
        assert self.priority is not None
        return eqx.tree_at(lambda b: b.priority, self, jnp.asarray(self.priority).at[slots].set(priority))

    def trimmed(self) -> "Buffer":
        """The buffer without its unused rows, on the host, for a checkpoint."""
        size = int(self.size)
        # Cut by NumPy: JAX would compile a slice for every size. A copy, since a view would keep the next update from
        # writing the rows in place.
        cut = lambda x: np.asarray(x)[:size] if x.ndim else np.asarray(x)
        return jax.tree.map(lambda x: cut(x).copy(), self)

    def padded(self, capacity: int) -> "Buffer":
        """The inverse of `trimmed`."""

        def pad(rows: Any) -> Array:
            whole = np.zeros((capacity, *rows.shape[1:]), rows.dtype)
            whole[: rows.shape[0]] = rows
            return jnp.array(whole)

        priority = None if self.priority is None else pad(self.priority)
        return Buffer(jax.tree.map(pad, self.rows), jnp.array(self.head), jnp.array(self.size), priority)
