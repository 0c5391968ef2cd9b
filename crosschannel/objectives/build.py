"""The objective's keys, and the module that they describe."""

from dataclasses import dataclass
from typing import Annotated, Literal

from crosschannel.color import load_prior
from crosschannel.keys import Share, Text, above, at_least, within
from crosschannel.objectives.classification import Classification
from crosschannel.objectives.regression import Regression


@dataclass
class ObjectiveConfig:
    """What is predicted."""

    kind: Literal["class", "l2"] = "class"
    """class: classification over 313 ab bins; l2: regression of ab in units of 110, as the release's nets have it"""
    lam: Share = 0.5
    """λ of the class weights: 0.5 rebalanced, 1 plain classification; 0 needs a prior of many images"""
    uniform: Literal["all", "seen"] = "all"
    """bins that λ is spread over: all, or those that the prior saw (the release)"""
    neighbours: Annotated[int, within(1, 313)] = 5
    """bins that a target colour is spread over (the release: 10)"""
    sigma: Annotated[float, above(0, 1000)] = 5.0
    """standard deviation of that spread, in ab units"""
    prior: Text = "imagenet-256"
    """the packaged ab prior, or a file written by `crosschannel prior`"""
    grey_threshold: Annotated[float, at_least(0)] = 0.0
    """crops with all |a|, |b| within it give no gradient (the release: 5); 0 keeps all"""
    normalise: Literal["pixels", "images"] = "pixels"
    """divide the summed loss by all target pixels of the batch, or by its images"""


def build_objective(config: ObjectiveConfig) -> Classification | Regression:
    """The objective as a module with ``outputs``, ``forward``, ``decode``, ``score`` and ``metrics``."""
    if config.kind == "l2":
        return Regression(config.grey_threshold)
    prior = load_prior(config.prior).fit_for(config.lam).smoothed
    return Classification(prior, config.lam, config.neighbours, config.sigma, config.grey_threshold, config.uniform)
