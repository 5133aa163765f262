"""Train on an environment of your own: any Gymnasium class will do.

    python examples/train_own_env.py
    PYTHONPATH=examples trimtab train sac --env train_own_env:make --steps 1500    # the same from the command line

Some 20 seconds on two cores.
"""

import gymnasium
import numpy as np
from gymnasium import spaces

import trimtab


class Cart(gymnasium.Env):
    """Push a cart to the origin of its rail and hold it there. Observation: position, velocity. Action: force."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-2.0, 2.0, (1,), np.float32)

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
        terminated = bool(abs(position) > 3.0)  # the world ended: no future beyond this step
        return self.state.astype(np.float32), reward, terminated, False, {}


def make() -> gymnasium.Env:
    """The factory: 100 steps an episode. The limit truncates, so the value of the last state still counts."""
    return gymnasium.wrappers.TimeLimit(Cart(), 100)


if __name__ == "__main__":
    run = trimtab.train("sac", make, steps=1_500, eval_freq=500)
    mean, std = trimtab.evaluate(run.policy, make, episodes=20)
    print(f"return {mean:.1f} +- {std:.1f} of at most 100, run folder {run.path}")

    action, _ = run.policy.predict(np.array([1.0, 0.0]), deterministic=True)
    print(f"at position 1, at rest, the policy pushes with {action[0]:+.2f}")
