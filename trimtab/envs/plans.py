"""Plans: a policy may answer with `h` actions at once, which are executed open loop, one a step.

Such an answer has `h * action_size` numbers on its last axis, the first action first. The policy is asked again when
its plan is used up or the episode has ended. A policy that answers with one action makes plans of length 1.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from trimtab.core import Spec, UsageError


def plan_length(shape: tuple[int, ...], spec: Spec) -> int:
    """How many actions an answer of `shape` holds. Raises `UsageError` if its last axis is no multiple of an action."""
    if spec.discrete:
        return 1
    if shape[-1] % spec.action_size:
        raise UsageError(f"the policy answers with {shape[-1]} numbers, but an action has {spec.action_size}")
    return shape[-1] // spec.action_size


class HostPlans:
    """What is left of the plans of `n` environments on the host."""

    def __init__(self, n: int, spec: Spec) -> None:
        self.spec = spec
        self.actions = np.zeros((n, 0, 0 if spec.discrete else spec.action_size), np.float32)
        self.left = np.zeros(n, np.int64)

    def __call__(self, ask: Callable[[], np.ndarray]) -> np.ndarray:
        """The next action of each environment, (n, act). `ask()` gives new plans for all, if any is used up."""
        due = self.left == 0
        if due.any():
            answer = ask()
            steps = plan_length(answer.shape, self.spec)
            if steps == 1 and due.all():
                return answer
            self._store(answer.reshape(len(due), steps, -1), due)
        action = self.actions[np.arange(len(due)), self.actions.shape[1] - self.left]
        self.left = self.left - 1
        return action

    def _store(self, plans: np.ndarray, due: np.ndarray) -> None:
        """Plans lie at the end of their row, so that what is left of any length ends in the same place."""
        n, room = self.actions.shape[:2]
        wider = np.zeros((n, max(room, plans.shape[1]), plans.shape[2]), np.float32)
        wider[:, wider.shape[1] - room :] = self.actions
        wider[due, wider.shape[1] - plans.shape[1] :] = plans[due]
        self.actions, self.left = wider, np.where(due, plans.shape[1], self.left)

    def clear(self, ended: np.ndarray) -> None:
        """Forgets the plans of environments whose episode has `ended` (n,)."""
        self.left = np.where(ended, 0, self.left)

    def state(self) -> dict[str, np.ndarray]:
        """What `restore` needs; empty for a policy that does not plan."""
        return {"plan/actions": self.actions, "plan/left": self.left} if self.actions.shape[1] else {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Goes on from `state()`. Raises `UsageError` if that is of another number of environments."""
        if "plan/left" not in arrays:
            return
        if arrays["plan/actions"].shape[:1] + arrays["plan/actions"].shape[2:] != (
            len(self.left),
            self.spec.action_size,
        ):
            raise UsageError("this state belongs to another number of environments: start again with state=None")
        self.actions, self.left = arrays["plan/actions"], arrays["plan/left"]


class Plan(eqx.Module):
    """What is left of the plans of `n` own worlds. `left` actions at the end of each row are still to be executed."""

    actions: Float[Array, "n h act"]
    left: Int[Array, " n"]

    @classmethod
    def create(cls, n: int, h: int, spec: Spec) -> "Plan":
        """Used-up plans with room for `h` actions each."""
        return cls(jnp.zeros((n, h, spec.action_size)), jnp.zeros((n,), jnp.int32))

    def next(self, ask: Callable[[], Array]) -> "tuple[Float[Array, 'n act'], Plan]":
        """The next action of each world, and the plans without it. `ask()` gives new plans for all; it is called only
        if any is used up. Raises `UsageError` if they are longer than there is room.
        """
        n, room, size = self.actions.shape
        steps = jax.eval_shape(ask).shape[-1] // size
        if steps > room:
            raise UsageError(f"the policy plans {steps} steps, but its agent's config says chunk = {room}")
        due = self.left == 0

        def anew() -> tuple[Array, Array]:
            plans = jnp.pad(ask().reshape(n, steps, size), ((0, 0), (room - steps, 0), (0, 0)))
            return jnp.where(due[:, None, None], plans, self.actions), jnp.where(due, steps, self.left)

        actions, left = jax.lax.cond(due.any(), anew, lambda: (self.actions, self.left))
        action = jnp.take_along_axis(actions, (room - left)[:, None, None], axis=1)[:, 0]
        return action, Plan(actions, left - 1)

    def cleared(self, ended: Bool[Array, " n"]) -> "Plan":
        """Without the plans of worlds whose episode has `ended`."""
        return Plan(self.actions, jnp.where(ended, 0, self.left))
