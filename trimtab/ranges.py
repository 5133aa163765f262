"""What hyper-parameters can be whose names mean the same in every agent, so that a slip of the hand is said at once."""

import math
from collections.abc import Callable
from typing import Any

from trimtab.errors import UsageError

NAMES: dict[str, str] = {
    "be at least 1": "atoms batch_size beta_updates candidates chunk components critic_members"
    " diffusion_steps embedding exploration_updates flow_steps n_epochs n_step n_steps order pairs policy_delay"
    " sequence target_every utd",
    "be positive": "actor_lr critic_lr ent_coef_lr init_ent_coef learning_rate loss_bound natural_bound",
    "be between 0 and 1": "epsilon expectile gae_lambda gamma random_actions tau",
    "be finite": "cut_value",
    "not be negative": "action_l2 alpha anneal_steps anneal_updates block clip_range clip_range_vf cql_alpha"
    " eta exploration_noise goal_match jacobian_weight lam learning_starts max_grad_norm memory noise_scale points"
    " probes target_kl target_noise target_noise_clip time_waves vf_coef xi xi_rate",
}
"""Rule -> the names that it holds for."""

RULES: dict[str, Callable[[float], bool]] = {
    "be at least 1": lambda x: x >= 1,
    "be positive": lambda x: 0.0 < x < math.inf,
    "be between 0 and 1": lambda x: 0.0 <= x <= 1.0,
    "be finite": lambda x: -math.inf < x < math.inf,
    "not be negative": lambda x: x >= 0.0,
}


def check_ranges(config: Any) -> None:
    """Raises `UsageError` for the first hyper-parameter of a config that cannot be what it is. What is no number, such
    as None, is left alone."""
    for rule, names in NAMES.items():
        for name in names.split():
            value = getattr(config, name, None)
            if isinstance(value, int | float) and not RULES[rule](value):
                raise UsageError(f"{name} must {rule}, got {value}")
