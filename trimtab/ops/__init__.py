"""Pure maths without modules: gradient steps, targets, losses, densities."""

from trimtab.ops.advantages import explained_variance as explained_variance
from trimtab.ops.advantages import gae as gae
from trimtab.ops.conservative import conservative_gap as conservative_gap
from trimtab.ops.descend import copy as copy
from trimtab.ops.descend import descend as descend
from trimtab.ops.descend import descend_stateful as descend_stateful
from trimtab.ops.distributional import project as project
from trimtab.ops.distributional import quantile_huber as quantile_huber
from trimtab.ops.goal_gradient import goal_gradient as goal_gradient
from trimtab.ops.goal_gradient import match as match
from trimtab.ops.jacobian import squared_jacobian as squared_jacobian
from trimtab.ops.jacobian import squared_jacobian_estimate as squared_jacobian_estimate
from trimtab.ops.logprob import gaussian_log_prob as gaussian_log_prob
from trimtab.ops.logprob import standard_log_prob as standard_log_prob
from trimtab.ops.logprob import tanh_log_det as tanh_log_det
from trimtab.ops.regression import expectile_loss as expectile_loss
from trimtab.ops.scale import unit_scale as unit_scale
from trimtab.ops.surrogate import clipped_surrogate as clipped_surrogate
from trimtab.ops.surrogate import epochs as epochs
from trimtab.ops.surrogate import shuffled as shuffled
from trimtab.ops.targets import AGGREGATES as AGGREGATES
from trimtab.ops.targets import aggregate as aggregate
from trimtab.ops.targets import polyak as polyak
from trimtab.ops.targets import td_target as td_target
