"""Presets of PPO."""

from typing import Any

_PENDULUM: dict[str, Any] = dict(
    num_envs=8,
    n_steps=256,
    batch_size=256,
    gamma=0.95,
    learning_rate=1e-3,
    anneal_steps=500_000,
    activation="relu",
)

PRESETS: dict[str, dict[str, Any]] = {
    "Pendulum-v1": _PENDULUM,
    "trimtab/Pendulum-v1": _PENDULUM,
    # Copies are cheap in a world in JAX.
    "trimtab/CartPole-v1": dict(num_envs=16, n_steps=128, batch_size=256, n_epochs=4, learning_rate=1e-3),
}
