"""A trained policy for use outside of the library: NumPy in, NumPy out, in the environment's own units."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.core import AbstractActor, AbstractAgent, Spec, UsageError, forget
from trimtab.envs.plans import HostPlans, plan_length
from trimtab.training.compile import act, act_on


class Policy:
    """What `trimtab.load` returns. `predict` has Stable-Baselines3's signature."""

    def __init__(self, agent: AbstractAgent, spec: Spec, info: dict[str, Any]) -> None:
        self.agent, self.spec, self.info = agent, spec, info
        self._calls = 0

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """The action for one observation or a batch of them (leading axis), and the `state` for the next call.

        `observation` is an array, or a dict of arrays for a Dict space. Actions are in the environment's units: float32
        of shape (act,) or (batch, act), or integer indices. Not `deterministic` draws anew at each call from the policy
        that collected the data. A policy that plans several actions at once keeps the rest of its plan in `state`, a
        recurrent one its memory: pass it on, with `episode_start` (batch,) set where a new episode has begun; without
        it each call plans anew and remembers nothing. Other policies leave `state` as it is. Raises `UsageError` if a
        shape does not fit.
        """
        vectors, batched = self._vectors(observation)
        self._calls += 1
        key = jr.key(self._calls)
        chosen = self.agent.policy if deterministic else self.agent.explorer
        n = len(jax.tree.leaves(vectors)[0])
        if isinstance(chosen, AbstractActor) and jax.tree.leaves(chosen.memory(())):
            memory = chosen.memory((n,)) if state is None else state
            shapes = lambda tree: [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
            if shapes(memory) != shapes(chosen.memory((n,))):
                raise UsageError("this state belongs to another number of environments: start again with state=None")
            if episode_start is not None:
                memory = forget(chosen, memory, jnp.broadcast_to(jnp.asarray(episode_start, bool), (n,)))
            _, action, memory = jax.device_get(act_on(chosen, vectors, memory, key, np.int32(0)))
            action = np.asarray(to_units(action, self.spec))
            return (action if batched else action[0]), memory
        plans = HostPlans(n, self.spec)
        if isinstance(state, dict):
            plans.restore(state)
        if episode_start is not None:
            plans.clear(np.broadcast_to(np.asarray(episode_start, bool), plans.left.shape))
        action = plans(lambda: np.asarray(act(chosen, vectors, key, np.int32(0))))
        action = np.asarray(to_units(action, self.spec))
        return (action if batched else action[0]), plans.state() or state

    def _vectors(self, obs: Any) -> tuple[Any, bool]:
        """`obs` as float32 rows, and whether it was a batch."""
        wanted = self.spec.obs
        if isinstance(wanted, dict):
            given = jax.tree.structure(obs, is_leaf=lambda x: isinstance(x, list | tuple))
            if given != jax.tree.structure(wanted):
                raise UsageError(f"obs must be a dict with the keys {', '.join(wanted)}")
        elif isinstance(obs, dict):
            raise UsageError(f"obs must be an array of shape ({wanted.size},) or (batch, {wanted.size}), not a dict")
        batched: list[bool] = []

        def convert(wanted: Any, given: Any) -> np.ndarray:
            try:
                array = np.asarray(given, np.float32)
            except (ValueError, TypeError) as error:
                raise UsageError(f"obs must be numbers: {error}") from error
            single = array.size == wanted.size and not (array.ndim > 1 and array.shape[0] == 1)
            if not single and (array.ndim < 2 or array.size != array.shape[0] * wanted.size):
                raise UsageError(f"obs has shape {array.shape}, expected ({wanted.size},) or (batch, {wanted.size})")
            batched.append(not single)
            return array.reshape(-1, wanted.size)

        vectors = jax.tree.map(convert, wanted, obs)
        rows = {(len(leaf), batch) for leaf, batch in zip(jax.tree.leaves(vectors), batched, strict=True)}
        if len(rows) > 1:
            raise UsageError("the parts of obs must all be single, or batches of the same length")
        return vectors, batched[0]

    def function(self, *, key_input: bool = False) -> Callable[..., Any]:
        """The deterministic policy as a pure JAX function: obs (..., obs) -> action in the environment's units.

        A policy that draws numbers (a flow its start) draws the same ones at each call, or with `key_input` those of a
        key: (obs, key) -> action.

        A policy that plans `h` actions at once gives them all, (..., h * act), the first action first. Raises
        `UsageError` for a policy with a memory, which such a function would lose.
        """
        policy, spec = self.agent.policy, self.spec
        if isinstance(policy, AbstractActor) and jax.tree.leaves(policy.memory(())):
            raise UsageError("a recurrent policy cannot be exported yet: its memory would be lost between two calls")
        if key_input:
            return lambda obs, key: to_units(policy(obs, key), spec)
        return lambda obs: to_units(policy(obs, jr.key(0)), spec)


def to_units(action: Any, spec: Spec) -> Any:
    """From [-1, 1] to the environment's bounds, each action of a plan; indices pass through."""
    if spec.discrete:
        return action
    h = plan_length(action.shape, spec)
    low, high = jnp.asarray(spec.action_low * h, jnp.float32), jnp.asarray(spec.action_high * h, jnp.float32)
    low, high = jnp.broadcast_to(low, action.shape), jnp.broadcast_to(high, action.shape)
    return 0.5 * ((1.0 - action) * low + (1.0 + action) * high)
