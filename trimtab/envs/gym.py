"""Gymnasium environments on the host: spaces, action scaling, ends of episodes, and their exact state."""

import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from trimtab.batches import Recorded, Transition
from trimtab.core import RunError, Spec, UsageError, mask_size, stuck
from trimtab.envs.plans import HostPlans

RECENT = 100
"""Finished episodes that `rollout/ep_rew_mean` is taken over, as in Stable-Baselines3."""

_PLAIN_WRAPPERS = ("TimeLimit", "OrderEnforcing", "PassiveEnvChecker")
"""Wrappers whose state we know: with others an environment goes on with a new episode after a resume."""


def spec_of(env: gymnasium.Env) -> Spec:
    """The `Spec` of an environment with Box or MultiBinary (or nested Dict of them) observations and Box, Discrete or
    MultiDiscrete actions.

    Raises `UsageError` naming what is not supported.
    """
    obs = _obs_spec(env.observation_space, "observation")
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        if space.start != 0:
            raise UsageError(f"a Discrete action space must start at 0, this one starts at {space.start}")
        return Spec(obs, int(space.n), True)
    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim != 1 or np.any(space.start != 0):
            raise UsageError("a MultiDiscrete action space must have one axis and start at 0")
        return Spec(obs, space.nvec.size, True, factors=tuple(map(int, space.nvec)))
    if isinstance(space, spaces.Box):
        low, high = space.low.reshape(-1), space.high.reshape(-1)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise UsageError(
                "the action space has infinite bounds: wrap it in gymnasium.wrappers.ClipAction or RescaleAction"
            )
        return Spec(obs, low.size, False, tuple(map(float, low)), tuple(map(float, high)))
    raise UsageError(f"the action space {type(space).__name__} is not supported: use Box, Discrete or MultiDiscrete")


def _obs_spec(space: spaces.Space, name: str) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _obs_spec(inner, f"{name}[{key!r}]") for key, inner in space.spaces.items()}
    if isinstance(space, spaces.MultiBinary):
        return jax.ShapeDtypeStruct((int(np.prod(space.shape)),), jnp.float32)
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) >= 2:
            raise UsageError(
                f"the {name} is an image of shape {space.shape}, which is not supported: use a vector observation"
            )
        return jax.ShapeDtypeStruct((int(np.prod(space.shape)),), jnp.float32)
    raise UsageError(
        f"the {name} space {type(space).__name__} is not supported: use Box or Dict of Box "
        "(gymnasium.wrappers.FlattenObservation turns most others into one)"
    )


def to_vector(obs: Any) -> Any:
    """An observation as float32 vectors: each leaf flattened, nested dicts kept. Always a copy: an environment may
    write on into the array that it gave."""
    if isinstance(obs, dict):
        return {key: to_vector(value) for key, value in obs.items()}
    return np.array(obs, np.float32).reshape(-1)


def _stack(items: list[Any]) -> Any:
    if len(items) == 1:
        return jax.tree.map(lambda x: x[None], items[0])
    return jax.tree.map(lambda *xs: np.stack(xs), *items)


def _finite(obs: Any) -> bool:
    if isinstance(obs, dict):
        return all(_finite(value) for value in obs.values())
    return bool(np.isfinite(obs).all())


def goal_reward(env: gymnasium.Env, label: str) -> Callable[[np.ndarray, np.ndarray, Any], Any]:
    """The reward of an environment with goals as a function of flat rows: achieved goals, wanted goals, info.

    Raises `UsageError` if it has no `compute_reward`, or one that cannot be asked about goals alone.
    """
    function = getattr(env.unwrapped, "compute_reward", None)
    if function is None:
        raise UsageError(f"{label} has no compute_reward(achieved_goal, desired_goal, info), which --her needs")
    shape = env.observation_space["achieved_goal"].shape  # pyright: ignore[reportIndexIssue]
    rows = np.zeros((2, *shape), np.float32)
    shaped = lambda x: np.asarray(x).reshape(len(x), *shape)
    try:
        batched = np.shape(function(rows, rows, {})) == (2,)
    except Exception:  # a third party's code: it may take one goal at a time
        batched = False
    if batched:
        return lambda achieved, goal, info: function(shaped(achieved), shaped(goal), info)
    try:
        float(function(rows[0], rows[0], {}))
    except Exception as error:  # a third party's code: whatever it raises, it cannot be used
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        text = f"--her asks {label}'s compute_reward about goals alone, which it cannot answer ({reason})"
        raise UsageError(text) from error
    each = lambda achieved, goal, info: [function(a, g, info) for a, g in zip(achieved, goal, strict=True)]
    return lambda achieved, goal, info: np.array(each(shaped(achieved), shaped(goal), info), np.float32)


def time_limit(env: gymnasium.Env, label: str) -> int:
    """The longest episode in steps. Raises `UsageError` if the environment does not say."""
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if limit is None:
        raise UsageError(f"{label} says no time limit, which --her needs: register it with max_episode_steps")
    return limit


class ActionScale:
    """Maps [-1, 1] actions to the environment's bounds and shape; indices pass through, several as an int64 array."""

    def __init__(self, spec: Spec, shape: tuple[int, ...] | None) -> None:
        self.discrete, self.factors = spec.discrete, spec.factors
        self.low = np.asarray(spec.action_low, np.float32)
        self.high = np.asarray(spec.action_high, np.float32)
        self.shape = shape

    def __call__(self, action: np.ndarray | np.integer) -> Any:
        """One action in the environment's units."""
        if self.discrete:
            return np.asarray(action, np.int64) if self.factors else int(action)
        a, one = np.asarray(action, np.float32), np.float32(1.0)
        # Weighing both bounds is exact at either end; low + (a + 1) / 2 * span can end up beyond the upper one.
        scaled = np.float32(0.5) * ((one - a) * self.low + (one + a) * self.high)
        return scaled if self.shape is None or len(self.shape) == 1 else scaled.reshape(self.shape)


class Stepped(NamedTuple):
    """What one step of `n` environments gave; leading axis n."""

    obs: Any
    action: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    """0 where the episode terminated."""
    next_obs: Any
    """the true final observation where the episode ended."""
    last: np.ndarray | None
    """whether it ended, terminated or cut; None unless rows say so."""

    def rows(self) -> Transition | Recorded:
        """The same as rows of a batch."""
        rows = _rows(*self[:-1])
        return rows if self.last is None else _recorded(rows, self.last)


class Collector:
    """Steps `n` Gymnasium environments and answers in rows. Ended episodes restart at once; only the ended one moves.

    `obs` holds the observations to act on, leaves of shape (n, ...). With `recorded`, rows say which of them ended
    their episode.
    """

    def __init__(
        self, make: Callable[[], gymnasium.Env], n: int, spec: Spec, seed: int, *, recorded: bool = False
    ) -> None:
        self.envs = [make() for _ in range(n)]
        self.spec, self.recorded = spec, recorded
        self.plans = HostPlans(n, spec)
        self.scale = ActionScale(spec, self.envs[0].action_space.shape)
        self.episode_return = np.zeros(n)
        self.episode_length = np.zeros(n, np.int64)
        self._successes = np.zeros(n)
        self._masked = bool(mask_size(spec))
        self.recent: deque[tuple[float, int, float]] = deque(maxlen=RECENT)
        self._obs = [self._reset(i, seed + i) for i in range(n)]
        self.obs = _stack(self._obs)

    def _reset(self, i: int, seed: int | None = None, timestep: int = 0) -> Any:
        try:
            obs = to_vector(self.envs[i].reset(seed=seed)[0])
        except Exception as error:  # a third party's code: any exception ends the run with its reason
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError(f"the environment raised on reset at step {timestep}: {reason}") from error
        if not _finite(obs):
            raise RunError(f"the environment gave a non-finite observation on reset at step {timestep}")
        self._check_mask(i, obs, timestep)
        return obs

    def _check_mask(self, i: int, obs: Any, timestep: int) -> None:
        if stuck(obs, self.spec):
            spec = self.envs[i].spec
            name = type(self.envs[i].unwrapped).__name__ if spec is None else spec.id
            raise RunError(f"{name} gave an action_mask without a valid action at step {timestep}")

    def choose(self, policy: Callable[[Any], Any]) -> np.ndarray:
        """The next actions, (n, act) in [-1, 1] or (n,) indices. `policy(obs)` gives actions or plans for all
        environments; it is asked only when some environment has no plan left.
        """
        return self.plans(lambda: np.asarray(policy(self.obs)))

    def step(self, actions: np.ndarray, timestep: int) -> Transition | Recorded:
        """`advance`, as the rows of a batch."""
        return self.advance(actions, timestep).rows()

    def advance(self, actions: np.ndarray, timestep: int) -> Stepped:
        """Acts with `actions` (n, act) in [-1, 1]; returns the n transitions.

        Raises `RunError`, naming `timestep`, if an environment raises or gives NaN or infinite numbers.
        """
        n = len(self.envs)
        rewards, discounts, ended = np.empty(n), np.ones(n, np.float32), np.zeros(n, bool)
        final: list[Any] = [None] * n
        for i, env in enumerate(self.envs):
            try:
                obs, reward, terminated, truncated, info = env.step(self.scale(actions[i]))
            except Exception as error:  # a third party's code: any exception ends the run with its reason
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise RunError(f"the environment raised at step {timestep}: {reason}") from error
            final[i] = to_vector(obs)
            rewards[i] = reward
            if terminated:
                discounts[i] = 0.0
            if terminated or truncated:
                ended[i] = True
                self._successes[i] = info.get("is_success", info.get("success", np.nan))
        reached = _stack(final)
        if not (np.isfinite(rewards).all() and _finite(reached)):
            what = "observation" if np.isfinite(rewards).all() else "reward"
            raise RunError(f"the environment gave a non-finite {what} at step {timestep}: mend it, then resume")
        self.episode_return += rewards
        self.episode_length += 1
        before, self._obs = self.obs, final
        for i in np.flatnonzero(ended).tolist():
            done = (float(self.episode_return[i]), int(self.episode_length[i]), float(self._successes[i]))
            self.recent.append(done)
            self.episode_return[i], self.episode_length[i] = 0.0, 0
            self._obs[i] = self._reset(i, timestep=timestep)
        self.obs = _stack(self._obs) if ended.any() else reached
        if self._masked:
            for i in np.flatnonzero(~ended).tolist():
                self._check_mask(i, self._obs[i], timestep)
        self.plans.clear(ended)
        last = ended if self.recorded else None
        return Stepped(before, np.asarray(actions), rewards.astype(np.float32), discounts, reached, last)

    def statistics(self) -> dict[str, float]:
        """Means over the last 100 finished episodes, with Stable-Baselines3's names; empty before the first."""
        if not self.recent:
            return {}
        returns, lengths, successes = np.array(self.recent, float).T
        means = {"rollout/ep_rew_mean": returns.mean(), "rollout/ep_len_mean": lengths.mean()}
        if np.isfinite(successes).any():
            means["rollout/success_rate"] = np.nanmean(successes)
        return {name: float(value) for name, value in means.items()}

    def close(self) -> None:
        """Closes all environments."""
        for env in self.envs:
            env.close()

    # The exact state: what a resumed run needs to go on as if it had never stopped.

    @property
    def exact(self) -> bool:
        """Whether `state` can be restored exactly: MuJoCo environments under Gymnasium's own plain wrappers."""
        return all(_is_plain_mujoco(env) for env in self.envs)

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs, as arrays."""
        arrays: dict[str, np.ndarray] = {
            "episode_return": self.episode_return.copy(),
            "episode_length": self.episode_length.copy(),
            "recent": np.array(self.recent, float).reshape(-1, 3),
            "exact": np.array(self.exact),
        }
        for i, env in enumerate(self.envs):
            for j, leaf in enumerate(jax.tree.leaves(self._obs[i])):
                arrays[f"obs/{i}/{j}"] = leaf
            if self.exact:
                arrays |= {f"env/{i}/{name}": value for name, value in _save_mujoco(env).items()}
        return arrays | self.plans.state()

    def restore(self, arrays: dict[str, np.ndarray]) -> bool:
        """Goes on from `state()`. Returns whether the environments continue exactly; else each starts a new episode."""
        self.recent = deque(map(_recent_row, arrays["recent"]), maxlen=RECENT)
        if not (bool(arrays["exact"]) and self.exact):
            return False
        self.episode_return, self.episode_length = arrays["episode_return"].copy(), arrays["episode_length"].copy()
        for i, env in enumerate(self.envs):
            treedef = jax.tree.structure(self._obs[i])
            self._obs[i] = jax.tree.unflatten(treedef, [arrays[f"obs/{i}/{j}"] for j in range(treedef.num_leaves)])
            prefix = f"env/{i}/"
            _load_mujoco(env, {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
        self.obs = _stack(self._obs)
        self.plans.restore(arrays)
        return True


def _rows(obs: Any, action: Any, reward: Any, discount: Any, next_obs: Any) -> Transition:
    """NumPy rows as a `Transition`, whose annotations promise the JAX arrays that agents get."""
    return Transition(obs, action, reward, discount, next_obs)


def _recorded(rows: Transition, last: Any) -> Recorded:
    return Recorded(rows, last)


def _recent_row(row: np.ndarray) -> tuple[float, int, float]:
    return float(row[0]), int(row[1]), float(row[2])


def _layers(env: gymnasium.Env) -> list[gymnasium.Env]:
    """The environment's wrappers, outermost first, and the bare environment last."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _is_plain_mujoco(env: gymnasium.Env) -> bool:
    from gymnasium.envs.mujoco import MujocoEnv

    layers = _layers(env)
    return isinstance(layers[-1], MujocoEnv) and all(type(w).__name__ in _PLAIN_WRAPPERS for w in layers[:-1])


def _save_mujoco(env: gymnasium.Env) -> dict[str, np.ndarray]:
    """The physics, the generator, the elapsed time and the plain attributes of a MuJoCo environment."""
    bare: Any = env.unwrapped
    arrays = {f"data/{name}": np.array(value) for name, value in _physics(bare.model, bare.data).items()}
    arrays["data/time"] = np.array(bare.data.time)
    arrays["generator"] = np.array(json.dumps(bare.np_random.bit_generator.state))
    for name, value in vars(bare).items():
        if isinstance(value, bool | int | float | np.ndarray | np.generic) and np.asarray(value).dtype.kind in "biuf":
            arrays[f"attribute/{name}"] = np.array(value)
    for layer in _layers(env)[:-1]:
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            arrays["elapsed"] = np.array(layer._elapsed_steps)
    return arrays


def _load_mujoco(env: gymnasium.Env, arrays: dict[str, np.ndarray]) -> None:
    bare: Any = env.unwrapped
    for name, value in _physics(bare.model, bare.data).items():
        value[...] = arrays[f"data/{name}"]
    bare.data.time = float(arrays["data/time"])
    bare.np_random.bit_generator.state = json.loads(str(arrays["generator"]))
    for name, value in vars(bare).items():
        key = f"attribute/{name}"
        if key in arrays:
            saved = arrays[key]
            setattr(bare, name, saved.copy() if isinstance(value, np.ndarray) else type(value)(saved.item()))
    for layer in _layers(env)[:-1]:
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            layer._elapsed_steps = int(arrays["elapsed"])


def _physics(model: Any, data: Any) -> dict[str, np.ndarray]:
    """Every array of an MjData whose size does not depend on the contacts of the moment.

    Not only positions and velocities: observations read derived numbers (body positions, contact forces) that MuJoCo
    computed before its last integration step, so they cannot be computed again from the state after it.
    """
    import mujoco

    fresh, arrays = mujoco.MjData(model), {}  # pyright: ignore[reportAttributeAccessIssue]
    for name in dir(fresh):
        # Arrays of contacts and islands are empty in fresh data; they are rebuilt by each step and never read before.
        template = None if name.startswith("_") else getattr(fresh, name)
        if isinstance(template, np.ndarray) and template.size and template.flags.writeable:
            arrays[name] = getattr(data, name)
    return arrays
