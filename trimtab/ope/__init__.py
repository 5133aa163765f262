"""Off-policy evaluation: what a policy is worth, told from a data set alone."""

from trimtab.ope.evaluate import ESTIMATORS as ESTIMATORS
from trimtab.ope.evaluate import OfflineEvaluation as OfflineEvaluation
from trimtab.ope.evaluate import Settings as Settings
from trimtab.ope.evaluate import evaluate_recorded as evaluate_recorded
