"""Presets of DQN."""

from typing import Any

# The network, exploration and target of rl-zoo's for CartPole, in 50,000 steps. Three steps to the bootstrap, a step
# size that falls to 0, less than half of rl-zoo's, and twice its rows an update are ours: without them one run in five
# or so ends with a network that has just got worse.
_CARTPOLE: dict[str, Any] = dict(
    num_envs=2,
    learning_rate=1e-3,
    anneal_updates=25_000,
    n_step=3,
    tau=1.0,
    target_every=128,
    epsilon=0.04,
    exploration_updates=3_500,
    hidden=(256, 256),
    batch_size=128,
)

PRESETS: dict[str, dict[str, Any]] = {"CartPole-v1": _CARTPOLE, "trimtab/CartPole-v1": _CARTPOLE}
