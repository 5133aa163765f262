"""Settings per agent and environment, where the defaults do not reach what users expect of them.

A preset is in force whenever its agent trains in its environment and no config is given; flags win over it.
"""

from dataclasses import dataclass, field
from typing import Any

from trimtab.presets import dqn, ppo

ALL: dict[str, dict[str, dict[str, Any]]] = {"dqn": dqn.PRESETS, "ppo": ppo.PRESETS}
"""Agent -> environment -> settings: the agent's fields, and `num_envs`."""


@dataclass(frozen=True)
class Preset:
    """What differs from the defaults."""

    num_envs: int = 1
    fields: dict[str, Any] = field(default_factory=dict)
    """of the agent's config."""

    def __str__(self) -> str:
        changes = ([f"num-envs {self.num_envs}"] if self.num_envs != 1 else []) + [
            f"agent.{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in self.fields.items()
        ]
        return ", ".join(changes)


def find(agent: str, env: Any) -> Preset | None:
    """The preset for an agent in an environment, named by its id; None if there is none."""
    settings = ALL.get(agent, {}).get(env) if isinstance(env, str) else None
    if settings is None:
        return None
    return Preset(settings.get("num_envs", 1), {k: v for k, v in settings.items() if k != "num_envs"})
