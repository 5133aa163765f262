"""Presets of DQN."""

from typing import Any

# With the step size kept, the last network is now and then a bad one.
_CARTPOLE: dict[str, Any] = dict(anneal_updates=50_000)

PRESETS: dict[str, dict[str, Any]] = {"CartPole-v1": _CARTPOLE, "trimtab/CartPole-v1": _CARTPOLE}
