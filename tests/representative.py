"""Which agents the default suite puts to the tests that every agent must pass; the rest are `make test-thorough`."""

from typing import Any

import pytest

from trimtab.agents import AGENTS

REPRESENTATIVE = {"ddpg", "iql", "ppo", "sac", "sac-flow-chunked", "td3"}
"""One of each skeleton: online, delayed updates, offline, rollouts, chunks of actions. Each further one compiles for
ten seconds or more."""


def every_agent() -> list[Any]:
    """All of `AGENTS` as parameters; those that stand for no skeleton of their own are marked `thorough`."""
    assert set(AGENTS) >= REPRESENTATIVE
    marks = lambda name: () if name in REPRESENTATIVE else (pytest.mark.thorough,)
    return [pytest.param(name, marks=marks(name)) for name in sorted(AGENTS)]
