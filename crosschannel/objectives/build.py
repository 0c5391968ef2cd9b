"""The module that the objective's keys describe."""

from crosschannel.color import load_prior
from crosschannel.objectives.classification import Classification
from crosschannel.objectives.config import ObjectiveConfig
from crosschannel.objectives.regression import Regression


def build_objective(config: ObjectiveConfig) -> Classification | Regression:
    """The objective as a module with ``outputs``, ``forward``, ``decode``, ``score`` and ``metrics``."""
    if config.kind == "l2":
        return Regression(config.grey_threshold)
    prior = load_prior(config.prior).fit_for(config.lam).smoothed
    return Classification(prior, config.lam, config.neighbours, config.sigma, config.grey_threshold, config.uniform)
