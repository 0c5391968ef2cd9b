"""The objective's keys."""

from dataclasses import dataclass
from typing import Annotated, Literal

from crosschannel.errors import UserError
from crosschannel.keys import Share, Text, above, at_least, within
from crosschannel.runs.config import path

PRIORS = ("imagenet-256", "imagenet-256-k10")  # that ship with the package


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
    prior: Text = path("imagenet-256", packaged=PRIORS)
    """the packaged ab prior, or a file written by `crosschannel prior`"""
    grey_threshold: Annotated[float, at_least(0)] = 0.0
    """crops with all |a|, |b| within it give no gradient (the release: 5); 0 keeps all"""
    normalise: Literal["pixels", "images"] = "pixels"
    """divide the summed loss by all target pixels of the batch, or by its images"""

    def check(self) -> None:
        if self.kind == "class" and self.lam == 0 and self.prior in PRIORS:
            raise UserError(
                f"the packaged prior {self.prior} is of 600 photographs, too few for a lam of 0: estimate one of your "
                "images with `crosschannel prior`"
            )
