"""A cart on a rail: push it to the origin and hold it there."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Cart(gymnasium.Env):
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)  # position, velocity
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)  # force

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform([-1.0, 0.0], [1.0, 0.0])
        return self.state.astype(np.float32), {}

    def step(self, action):
        position, velocity = self.state
        velocity += 0.1 * float(action[0])
        position += 0.1 * velocity
        self.state = np.array([position, velocity])
        reward = 1.0 - position**2 - 0.1 * velocity**2
        return self.state.astype(np.float32), reward, bool(abs(position) > 3.0), False, {}


def make():
    return gymnasium.wrappers.TimeLimit(Cart(), 100)


gymnasium.register("my/Cart-v0", Cart, max_episode_steps=100)
