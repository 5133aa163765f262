"""Networks as Modules whose every leaf is an array."""

from trimtab.nets.batch_norm import BatchRenorm as BatchRenorm
from trimtab.nets.critic import Critic as Critic
from trimtab.nets.critic import CrossQCritic as CrossQCritic
from trimtab.nets.critic import Value as Value
from trimtab.nets.linear import LayerNorm as LayerNorm
from trimtab.nets.linear import Linear as Linear
from trimtab.nets.mlp import ACTIVATIONS as ACTIVATIONS
from trimtab.nets.mlp import MLP as MLP
from trimtab.nets.mlp import concat as concat
from trimtab.nets.running import RunningStd as RunningStd
from trimtab.nets.standardise import Standardise as Standardise
