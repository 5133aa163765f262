"""The worlds: Gymnasium environments on the host, own worlds in JAX, and tiny probes with known answers."""

from trimtab.envs.make import World as World
from trimtab.envs.make import find as find
from trimtab.envs.register import register as register
from trimtab.envs.register import worlds as worlds
