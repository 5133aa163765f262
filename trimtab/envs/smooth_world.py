"""SmoothWorld (MePoly, arXiv:2602.17832): a point in a plane of 25 by 25 cells seeks one of several goals.

An action is a velocity: the point moves by a quarter of it, stays where a wall cell lies ahead, and is kept in the
plane. A goal cell pays 20 and ends the episode, a death cell pays -10 and ends it, all else pays nothing. Which goal is
as good as another, so a policy of one mode loses nothing by taking always the same; what shows is whether it has to.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from trimtab.core import AbstractEnv, Spec, Step

SIDE, MIDDLE = 25, 12
FREE, WALL, GOAL, DEATH = 0, 1, 2, 3


def _block(cells: np.ndarray, kind: int, x: tuple[int, int], y: tuple[int, int]) -> None:
    """Fills the cells from x[0] to x[1] and y[0] to y[1], both included."""
    cells[x[0] : x[1] + 1, y[0] : y[1] + 1] = kind


def layout(name: str) -> Int[np.ndarray, "25 25"]:
    """The cells of a map, by (x, y). Raises `KeyError` for a name that there is not."""
    cells = np.zeros((SIDE, SIDE), np.int32)
    around = lambda kind, x, y: _block(cells, kind, (x - 1, x + 1), (y - 1, y + 1))
    if name == "two_walls":
        _block(cells, GOAL, (0, 24), (0, 1))
        _block(cells, GOAL, (0, 24), (23, 24))
    elif name == "four_walls":
        for x, y in ((MIDDLE, 23), (MIDDLE, 1), (1, MIDDLE), (23, MIDDLE)):
            around(GOAL, x, y)
    elif name == "three_goals":
        around(DEATH, MIDDLE, MIDDLE)
        for x, y in ((12, 18), (7, 7), (17, 7)):
            around(GOAL, x, y)
    elif name == "tree":
        _block(cells, DEATH, (13, 17), (10, 14))
        _block(cells, GOAL, (23, 24), (10, 14))
    elif name == "two_slits":
        _block(cells, WALL, (15, 15), (0, 24))
        _block(cells, FREE, (15, 15), (4, 7))
        _block(cells, FREE, (15, 15), (17, 20))
        _block(cells, GOAL, (24, 24), (0, 24))
    elif name == "cshape":
        _block(cells, WALL, (7, 17), (7, 7))
        _block(cells, WALL, (7, 17), (17, 17))
        _block(cells, WALL, (17, 17), (7, 17))
        _block(cells, GOAL, (10, 14), (10, 14))
    else:
        raise KeyError(name)
    return cells


class SmoothWorld(AbstractEnv):
    """See the top of the file. Observations are the position, (p - 12.5) / 12.5. An episode begins anywhere in a free
    cell, all alike."""

    cells: Int[Array, "25 25"]
    free: Int[Array, "n 2"]
    """the free cells."""
    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 2, False, (-1.0, -1.0), (1.0, 1.0))
    max_steps: ClassVar[int] = 256

    @classmethod
    def create(cls, name: str) -> "SmoothWorld":
        """The map of that name: two_walls, four_walls, three_goals, tree, two_slits or cshape."""
        cells = layout(name)
        return cls(jnp.asarray(cells), jnp.asarray(np.argwhere(cells == FREE), jnp.int32))

    def at(self, position: Float[Array, "2"]) -> Int[Array, ""]:
        """The kind of the cell."""
        x, y = jnp.floor(position).astype(jnp.int32)
        return self.cells[x, y]

    def reset(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        k_cell, k_place = jr.split(key)
        cell = self.free[jr.randint(k_cell, (), 0, self.free.shape[0])]
        position = jnp.minimum(cell.astype(jnp.float32) + jr.uniform(k_place, (2,)), SIDE - 1e-5)
        return position, self._obs(position)

    def step(self, state: Float[Array, "2"], action: Array, key: PRNGKeyArray) -> tuple[Array, Step]:
        ahead = jnp.clip(state + 0.25 * jnp.clip(action, -1.0, 1.0), 0.0, SIDE - 1e-5)
        position = jnp.where(self.at(ahead) == WALL, state, ahead)
        kind = self.at(position)
        reached: Bool[Array, ""] = kind == GOAL
        reward = jnp.where(reached, 20.0, jnp.where(kind == DEATH, -10.0, 0.0))
        over = reached | (kind == DEATH)
        return position, Step(self._obs(position), reward, over, jnp.asarray(False), {"success": reached})

    def _obs(self, position: Float[Array, "2"]) -> Float[Array, "2"]:
        return (position - SIDE / 2) / (SIDE / 2)
