"""Where batches come from: the ring buffer, sources and readers."""

from trimtab.data.buffer import Buffer as Buffer
from trimtab.data.readers import read_dataset as read_dataset
from trimtab.data.rollouts import RolloutSource as RolloutSource
from trimtab.data.rollouts import WorldRollouts as WorldRollouts
from trimtab.data.sources import AbstractSource as AbstractSource
from trimtab.data.sources import OfflineSource as OfflineSource
from trimtab.data.sources import ReplaySource as ReplaySource
from trimtab.data.sources import WorldSource as WorldSource
