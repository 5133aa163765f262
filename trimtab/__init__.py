"""Trimtab: reinforcement learning that stays steady.

run = trimtab.train("sac", env="Hopper-v5", steps=100_000, seed=0)
policy = trimtab.load(run.path)
action, _ = policy.predict(obs, deterministic=True)
mean, std = trimtab.evaluate(policy, "Hopper-v5", episodes=10)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trimtab.api import evaluate as evaluate
    from trimtab.api import evaluate_offline as evaluate_offline
    from trimtab.api import load as load
    from trimtab.api import resume as resume
    from trimtab.api import train as train
    from trimtab.envs.register import register as register

_LAZY = {
    "train": "trimtab.api",
    "resume": "trimtab.api",
    "load": "trimtab.api",
    "evaluate": "trimtab.api",
    "evaluate_offline": "trimtab.api",
    "register": "trimtab.envs.register",
}


def __getattr__(name: str) -> Any:
    """The verbs are imported at first use, so that `import trimtab` and `trimtab --help` stay quick."""
    if name not in _LAZY:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
