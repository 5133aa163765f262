"""One file a method. A new agent is one file and one line here."""

from typing import Any

from trimtab.agents.ddpg import DDPG as DDPG
from trimtab.agents.iql import IQL as IQL
from trimtab.agents.sac import SAC as SAC
from trimtab.agents.sac_flow import SACFlow as SACFlow
from trimtab.agents.sac_flow_chunked import SACFlowChunked as SACFlowChunked
from trimtab.agents.td3 import TD3 as TD3
from trimtab.core import AbstractAgent

AGENTS: dict[str, type[AbstractAgent]] = {
    "ddpg": DDPG,
    "iql": IQL,
    "sac": SAC,
    "sac-flow": SACFlow,
    "sac-flow-chunked": SACFlowChunked,
    "td3": TD3,
}
"""Every agent by its command-line name."""


def config_class(agent: type[AbstractAgent]) -> type[Any]:
    """The frozen config dataclass of an agent class: the annotation of its `config` field."""
    return agent.__annotations__["config"]
