"""What a user brings: environments and a world of their own, good ones and broken ones."""

from typing import ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import trimtab
from trimtab.core import AbstractEnv, Spec, Step


class Reach(gymnasium.Env):
    """Move a point to 0 in ten steps, seen as a Dict. `breaks` says what goes wrong from step 5 of an episode on."""

    def __init__(self, breaks: str = "", render_mode: str | None = None) -> None:
        self.observation_space = spaces.Dict({"at": spaces.Box(-10.0, 10.0, (2,)), "age": spaces.Box(0.0, 1.0, (1,))})
        self.action_space = spaces.Box(np.float32(-0.5), np.float32(1.0), (2,))
        self.breaks, self.render_mode = breaks, render_mode

    def _obs(self):
        return {"at": self.at.astype(np.float32), "age": np.array([self.age / 10], np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.age = self.np_random.uniform(-1.0, 1.0, 2), 0
        return self._obs(), {}

    def step(self, action):
        self.at, self.age = self.at + 0.2 * np.asarray(action, np.float64), self.age + 1
        reward, broken = -float(np.linalg.norm(self.at)), self.age >= 5
        if broken and self.breaks == "raises":
            raise RuntimeError("the arm\nfell off")
        if broken and self.breaks == "nan reward":
            reward = float("nan")
        if broken and self.breaks == "nan obs":
            self.at = self.at * np.nan
        return self._obs(), reward, False, self.age == 10, {"is_success": -reward < 0.3}

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


class Image(Reach):
    """Sees pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)


def make() -> gymnasium.Env:
    return Reach()


def make_raising() -> gymnasium.Env:
    return Reach("raises")


def make_nan_reward() -> gymnasium.Env:
    return Reach("nan reward")


def make_nan_obs() -> gymnasium.Env:
    return Reach("nan obs")


def make_image() -> gymnasium.Env:
    return Image()


def make_nothing() -> None:
    return None


def make_impossible() -> gymnasium.Env:
    raise OSError("the simulator is not installed")


class Point(AbstractEnv):
    """Obs x, reward -(x + a)^2, one step."""

    spec: ClassVar[Spec] = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1, False, (-1.0,), (1.0,))
    max_steps: ClassVar[int] = 1

    def reset(self, key):
        x = jax.random.uniform(key, (1,), minval=-1.0, maxval=1.0)
        return x, x

    def step(self, state, action, key):
        reward = -jnp.square(state[0] + action[0])
        return state, Step(state, reward, jnp.asarray(True), jnp.asarray(False), {})


gymnasium.register("MyReach-v0", entry_point=Reach)
trimtab.register("my/Point", Point)
