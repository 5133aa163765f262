"""What agents learn from: final structs of arrays with one leading batch axis `b`."""

from typing import TYPE_CHECKING

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

if TYPE_CHECKING:  # type checkers see a JAX array, which is what agents get
    AnyArray = Array
else:
    AnyArray = Array | np.ndarray
"""Rows come from the host as NumPy arrays and live on the device as JAX arrays."""


class Transition(eqx.Module):
    """One step of experience. `discount` is 0 where the episode terminated and 1 otherwise (gamma^(n-1) for n steps).

    A time limit leaves `discount` at 1: `next_obs` is then the true final observation and is bootstrapped from.
    """

    obs: PyTree[Float[AnyArray, "b ..."]]
    action: AnyArray
    """(b, action_size) in [-1, 1], or (b,) int32 indices."""
    reward: Float[AnyArray, " b"]
    discount: Float[AnyArray, " b"]
    next_obs: PyTree[Float[AnyArray, "b ..."]]


class Recorded(eqx.Module):
    """Transitions in the order in which they happened, and which of them were the last of their trajectory.

    This is what is stored where windows of several steps are drawn. `last` is set where the environment was reset after
    it, and on the last row of a data set: the row after it belongs to another trajectory. A task may also terminate
    (discount 0) while the recording goes on, as in OGBench, whose data were recorded without a task.
    """

    transition: Transition
    last: Bool[AnyArray, " b"]

    @property
    def ended(self) -> Bool[AnyArray, " b"]:
        """Where an episode of the task ended: terminated, or cut with the recording."""
        return self.last | (self.transition.discount == 0.0)


class Sarsa(eqx.Module):
    """One step of experience and the action that was taken after it, where the data knows one.

    The next row of the data is the next action's only within an episode: where the episode ended, terminated or cut,
    and at the last row that was recorded, `next_valid` is 0 and `next_action` belongs to another episode.
    """

    obs: PyTree[Float[AnyArray, "b ..."]]
    action: AnyArray
    """(b, action_size) in [-1, 1], or (b,) int32 indices."""
    reward: Float[AnyArray, " b"]
    discount: Float[AnyArray, " b"]
    next_obs: PyTree[Float[AnyArray, "b ..."]]
    next_action: AnyArray
    """what was done in `next_obs`, shaped like `action`."""
    next_valid: Float[AnyArray, " b"]
    """1 where `next_action` is the data's action in `next_obs`, else 0."""


class ToGo(eqx.Module):
    """One step of experience and the discounted return that its episode had from it on, as far as that is known."""

    obs: PyTree[Float[AnyArray, "b ..."]]
    action: AnyArray
    """(b, action_size) in [-1, 1], or (b,) int32 indices."""
    reward: Float[AnyArray, " b"]
    discount: Float[AnyArray, " b"]
    next_obs: PyTree[Float[AnyArray, "b ..."]]
    to_go: Float[AnyArray, " b"]
    """`reward` and what came after it, discounted; -inf while the episode still goes on."""


class Scored(eqx.Module):
    """Transitions of a data set, and the agent's own score of each row, given before it began to learn from them."""

    transition: Transition
    score: Float[AnyArray, " b"]
    """of these rows."""
    least: Float[AnyArray, ""]
    """the least score of the whole data set, or what the agent takes for it."""


class Rollout(eqx.Module):
    """`t` successive steps of `n` environments, in the order in which they happened: what on-policy agents learn from.

    Where `last` is set the episode ended, terminated (`discount` 0) or cut (`discount` 1), and the next row of that
    environment begins another; `next_obs` is the true final observation, so that a cut can be bootstrapped from.
    """

    obs: PyTree[Float[AnyArray, "t n ..."]]
    action: AnyArray
    """as the explorer drew it, before clipping: (t, n, act), or int32 indices (t, n) or (t, n, factors)."""
    reward: Float[AnyArray, "t n"]
    discount: Float[AnyArray, "t n"]
    next_obs: PyTree[Float[AnyArray, "t n ..."]]
    last: Bool[AnyArray, "t n"]
    discounted: Float[AnyArray, "t n"]
    """the rewards of the episode up to this one, each discounted by the time since then."""
    memory: PyTree[Float[AnyArray, "t n ..."]]
    """what the explorer remembered before each step; () where it remembers nothing."""


class Weighted(eqx.Module):
    """Transitions drawn by their priorities (prioritised replay)."""

    transition: Transition
    slot: Int[AnyArray, " b"]
    """where they lie in the buffer."""
    density: Float[AnyArray, " b"]
    """the probability with which each was drawn, in units of the uniform one."""


class Chunk(eqx.Module):
    """Windows of `h` successive steps: what an agent that plans `h` actions at once learns from.

    Steps with `valid` 0 come after the end of the window's trajectory and belong to another one: weigh losses by it. In
    particular `next_obs` and the sum of all rewards mean something only where the last step is valid; a window that
    ends exactly where its trajectory ends is valid throughout, and so is one in whose midst a task terminated while the
    recording went on: the least of its discounts is 0.
    """

    obs: PyTree[Float[AnyArray, "b ..."]]
    """before the first step."""
    action: AnyArray
    """(b, h, action_size) in [-1, 1], or (b, h) int32 indices."""
    reward: Float[AnyArray, "b h"]
    discount: Float[AnyArray, "b h"]
    """each step's own: 0 where it terminated the episode, 1 otherwise."""
    next_obs: PyTree[Float[AnyArray, "b ..."]]
    """after the h-th step."""
    valid: Float[AnyArray, "b h"]
    """1 for the first step and those after it up to the end of what was recorded without a break; 0 from then on."""
