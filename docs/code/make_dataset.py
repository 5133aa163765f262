import gymnasium
import numpy as np

names = ("observations", "actions", "rewards", "next_observations", "terminals")
env, rng = gymnasium.make("InvertedPendulum-v5"), np.random.default_rng(0)  # its actions go from -3 to 3
rows, (obs, _) = [], env.reset(seed=0)
for _ in range(20_000):
    action = np.clip(obs @ [1.0, 20.0, 2.0, 4.0] / 3.0 + 0.8 * rng.normal(size=1), -1.0, 1.0)
    next_obs, reward, terminated, truncated, _ = env.step(3.0 * action)
    rows.append((obs, action, reward, next_obs, terminated))
    obs = env.reset()[0] if terminated or truncated else next_obs
columns = [np.array(column, np.float32) for column in zip(*rows, strict=True)]
np.savez("pendulum.npz", **dict(zip(names, columns, strict=True)))
