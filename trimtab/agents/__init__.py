"""One file a method. A new agent is one file and one line here."""

from typing import Any, get_type_hints

from trimtab.agents.bc import BC as BC
from trimtab.agents.cal_ql import CalQL as CalQL
from trimtab.agents.cql import CQL as CQL
from trimtab.agents.ddpg import DDPG as DDPG
from trimtab.agents.diffusion_ql import DiffusionQL as DiffusionQL
from trimtab.agents.dqn import DQN as DQN
from trimtab.agents.fino import FINO as FINO
from trimtab.agents.flow_ac import FlowAC as FlowAC
from trimtab.agents.fpo import FPO as FPO
from trimtab.agents.fql import FQL as FQL
from trimtab.agents.ifql import IFQL as IFQL
from trimtab.agents.iql import IQL as IQL
from trimtab.agents.mepoly import MePoly as MePoly
from trimtab.agents.ppo import PPO as PPO
from trimtab.agents.qc_fql import QCFQL as QCFQL
from trimtab.agents.rebrac import ReBRAC as ReBRAC
from trimtab.agents.reengage import ReenGAGE as ReenGAGE
from trimtab.agents.reengage_sac import ReenGAGESAC as ReenGAGESAC
from trimtab.agents.reengage_sets import ReenGAGESets as ReenGAGESets
from trimtab.agents.rlpd import RLPD as RLPD
from trimtab.agents.sac import SAC as SAC
from trimtab.agents.sac_flow import SACFlow as SACFlow
from trimtab.agents.sac_flow_chunked import SACFlowChunked as SACFlowChunked
from trimtab.agents.td3 import TD3 as TD3
from trimtab.agents.td3_bc import TD3BC as TD3BC
from trimtab.batches import Transition
from trimtab.core import AbstractAgent

AGENTS: dict[str, type[AbstractAgent]] = {
    "bc": BC,
    "cal-ql": CalQL,
    "cql": CQL,
    "ddpg": DDPG,
    "diffusion-ql": DiffusionQL,
    "dqn": DQN,
    "fac": FlowAC,
    "fino": FINO,
    "fpo": FPO,
    "fql": FQL,
    "ifql": IFQL,
    "iql": IQL,
    "mepoly": MePoly,
    "ppo": PPO,
    "qc-fql": QCFQL,
    "rebrac": ReBRAC,
    "reengage": ReenGAGE,
    "reengage-sac": ReenGAGESAC,
    "reengage-sets": ReenGAGESets,
    "rlpd": RLPD,
    "sac": SAC,
    "sac-flow": SACFlow,
    "sac-flow-chunked": SACFlowChunked,
    "td3": TD3,
    "td3-bc": TD3BC,
}
"""Every agent by its command-line name."""


def batch_class(agent: type[AbstractAgent]) -> Any:
    """What an agent class learns from: the annotation of `update`'s batch, one of those in `trimtab.batches`."""
    return get_type_hints(agent.update).get("batch", Transition)


def config_class(agent: type[AbstractAgent]) -> type[Any]:
    """The frozen config dataclass of an agent class: the annotation of its `config` field."""
    return agent.__annotations__["config"]
