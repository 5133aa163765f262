"""OGBench (the extra `ogbench`): names, environments, scripted oracles and task rewards.

This is the only file that imports it, when it is needed. Names are OGBench's own:

- `cube-single-play-v0`: a data set, and the file it is in;
- `cube-single-v0`: the environment behind it;
- `cube-single-play-singletask-task2-v0`, or `cube-single-singletask-task2-v0`: the environment with one task, whose
  reward is -1 a step in a maze and minus the number of parts that are not in place in manipulation; without `-taskN`
  the default task.
"""

import difflib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from trimtab.core import UsageError

FAMILIES = ("pointmaze", "antmaze", "humanoidmaze", "antsoccer", "cube", "scene", "puzzle")
"""What names of environments with state observations begin with."""

KINDS = ("play", "noisy", "navigate", "stitch", "explore", "path")
"""How a data set was collected: the word before the version, or before `singletask`."""

TASKS = 5
"""Tasks of each environment."""

_NAME = re.compile(
    rf"(?P<env>(?:{'|'.join(FAMILIES)})(?:-[a-z0-9]+)*?)(?:-(?P<kind>{'|'.join(KINDS)}))?"
    r"(?:-singletask(?:-task(?P<task>\d))?(?P<single>))?-v0"
)


def is_name(name: str) -> bool:
    """Whether `name` looks like OGBench's; it need not exist."""
    return _NAME.fullmatch(name) is not None


def is_task(name: str) -> bool:
    """Whether `name` is of an environment with one task, which gives data of OGBench their rewards."""
    return is_name(name) and "-singletask" in name


def dataset_of(name: str) -> str:
    """The data set in a name: `cube-single-play-singletask-task2-v0` -> `cube-single-play-v0`."""
    return re.sub(r"-singletask(-task\d)?", "", name)


def env_id(name: str) -> str:
    """The environment's id in a name: without the kind of its data set."""
    return re.sub(rf"-({'|'.join(KINDS)})(?=-singletask|-v0)", "", name)


def task_name(dataset: str, task: int) -> str:
    """The environment of one task of a data set: `cube-single-play-v0`, 2 -> `cube-single-singletask-task2-v0`."""
    return env_id(dataset).replace("-v0", f"-singletask-task{task}-v0")


def library() -> Any:
    """The package `ogbench`, which registers its environments with Gymnasium.

    Raises `UsageError` with the command that installs it.
    """
    import mujoco  # noqa: F401  it settles on a kind of OpenGL when it is imported, and keeps to it

    unset = "MUJOCO_GL" not in os.environ
    try:
        if unset:  # dm_control would look for a display, which it warns of where there is none; nobody renders with it
            os.environ["MUJOCO_GL"] = "disabled"
        import ogbench
    except ImportError as error:
        hint = "pip install 'trimtab[ogbench]', on Python 3.11 or 3.12"
        raise UsageError(f"OGBench is not installed ({error}): {hint}") from error
    finally:
        if unset:
            del os.environ["MUJOCO_GL"]
    return ogbench


def oracles() -> dict[str, Any]:
    """The scripted oracles by "plan/cube", "markov/button" and so on."""
    library()
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    return {
        "markov/button": ButtonMarkovOracle,
        "markov/cube": CubeMarkovOracle,
        "markov/drawer": DrawerMarkovOracle,
        "markov/window": WindowMarkovOracle,
        "plan/button": ButtonPlanOracle,
        "plan/cube": CubePlanOracle,
        "plan/drawer": DrawerPlanOracle,
        "plan/window": WindowPlanOracle,
    }


def make(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """The environment of a name, with a random stream of its own. Raises `UsageError` naming the nearest one."""
    return OwnRandomness(make_bare(name, {} if render_mode is None else {"render_mode": render_mode}))


def make_bare(name: str, options: dict[str, Any]) -> gymnasium.Env:
    """The environment of a name as OGBench makes it with `options`, drawing from NumPy's global generator."""
    library()
    wanted = env_id(name)
    if wanted not in gymnasium.registry:
        known = [known for known in gymnasium.registry if is_name(known)]
        near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)
        raise UsageError(f"OGBench has no environment {wanted!r}: did you mean {near[0]!r}?")
    with quiet():
        return gymnasium.make(wanted, disable_env_checker=True, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence about action bounds given in float64 where float32 is declared: -1 and 1 lose nothing by it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
        yield


def ant_in_the_plane(render_mode: str | None = None) -> gymnasium.Env:
    """OGBench's ant without walls, told every 100 steps in which direction to walk and rewarded for how far it got.

    Its observation, (29,), is what the ant of the mazes feels without its place, and the unit vector of the direction.
    """
    library()
    import ogbench.online_locomotion  # noqa: F401  registers the environment
    from ogbench.online_locomotion.wrappers import GymXYWrapper

    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with quiet(), global_numpy(np.random.RandomState(0).get_state()):
        env = GymXYWrapper(gymnasium.make("online-ant-v0", disable_env_checker=True, **rendering))
    return OwnRandomness(env, steps_draw=True)


class OwnRandomness(gymnasium.Wrapper):
    """Lets an environment that draws from NumPy's global generator draw from one of its own, which `reset` seeds.

    So equal seeds give equal episodes whatever else runs in the process.
    """

    def __init__(self, env: gymnasium.Env, *, steps_draw: bool = False) -> None:
        super().__init__(env)
        self._state: Any = np.random.RandomState(0).get_state()
        with self._own(), quiet():  # a look at either space makes a new one, and resets an environment that is new
            self.action_space, self.observation_space = env.action_space, env.observation_space
        self._steps_draw = steps_draw or "teleport" in str(env.spec.id if env.spec else "")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """The environment's, with its generator seeded by `seed`."""
        if seed is not None:
            self._state = np.random.RandomState(seed).get_state()
        with self._own(), quiet():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        """The environment's; few draw anything in a step."""
        if not self._steps_draw:
            return self.env.step(action)
        with self._own():
            return self.env.step(action)

    @contextmanager
    def _own(self) -> Iterator[None]:
        with global_numpy(self._state):
            yield
            self._state = np.random.get_state()  # noqa: NPY002


@contextmanager
def global_numpy(state: Any) -> Iterator[None]:
    """NumPy's global generator in a given state inside, and as it was afterwards."""
    outer = np.random.get_state()  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(outer)  # noqa: NPY002


def task_rewards(name: str, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and masks (0 where the task is solved), both float32 (n,), of states under the task of `name`.

    `arrays` holds `qpos` (n, nq) and, where there are buttons, `button_states`: the states before each action. Raises
    `UsageError` if they are another environment's.
    """
    if not is_task(name):
        raise UsageError(
            f"{name!r} names no single task of OGBench: use a name such as cube-single-play-singletask-task2-v0"
        )
    env = make(name)
    try:
        env.reset(seed=0)
        bare: Any = env.unwrapped
        data = bare.data
        wanted = data.qpos.size
        if arrays["qpos"].shape[1:] != (wanted,):
            raise UsageError(f"{name} has qpos of {wanted} numbers, the data set has {arrays['qpos'].shape[1]}")
        found = {key: arrays[key] for key in ("qpos", "button_states") if key in arrays}
        from ogbench.relabel_utils import relabel_dataset

        relabel_dataset(env_id(name), env, found)
    except KeyError as error:
        raise UsageError(f"the data set lacks {error}, which the rewards of {name} need") from error
    finally:
        env.close()
    return found["rewards"], found["masks"]
