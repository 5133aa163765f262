"""Policies: obs -> action in [-1, 1], leading axes free."""

from trimtab.policies.compose import BestOfN as BestOfN
from trimtab.policies.compose import Clip as Clip
from trimtab.policies.compose import Noisy as Noisy
from trimtab.policies.compose import SoftmaxOfN as SoftmaxOfN
from trimtab.policies.compose import Uniform as Uniform
from trimtab.policies.deterministic import Deterministic as Deterministic
from trimtab.policies.gaussian import Gaussian as Gaussian
from trimtab.policies.gaussian import Mean as Mean
from trimtab.policies.gaussian import TanhGaussian as TanhGaussian
