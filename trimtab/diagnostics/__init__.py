"""What goes wrong in training, and where: pure functions of networks, batches and keys."""

from collections.abc import Callable
from typing import Any

from trimtab.core import AbstractMonitor, Metrics
from trimtab.diagnostics import rollout_grad
from trimtab.diagnostics.seem import SeemMonitor

TRAINING_PROBES: dict[str, Callable[[Any, Any, Any], Metrics] | AbstractMonitor] = {
    "rollout-grad": rollout_grad.measure,
    "seem": SeemMonitor(),
}
"""Name -> (agent, batch, key) -> metrics, or a monitor: what a run can log as `diagnostics/NAME_METRIC`."""
