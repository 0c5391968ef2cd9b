"""What is predicted and how it is scored: classes (rebalanced or not), or ab itself (L2)."""

from crosschannel.objectives.build import ObjectiveConfig, build_objective
from crosschannel.objectives.classification import Classification, sparse_cross_entropy
from crosschannel.objectives.regression import Regression

__all__ = ["Classification", "ObjectiveConfig", "Regression", "build_objective", "sparse_cross_entropy"]
