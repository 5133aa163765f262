"""What goes wrong in training, and where: pure functions of networks, batches and keys."""

from collections.abc import Callable
from typing import Any

from trimtab.core import Metrics
from trimtab.diagnostics import rollout_grad

TRAINING_PROBES: dict[str, Callable[[Any, Any, Any], Metrics]] = {"rollout-grad": rollout_grad.measure}
"""Name -> (agent, batch, key) -> metrics: what a run can log at each evaluation, as `diagnostics/NAME_METRIC`."""
