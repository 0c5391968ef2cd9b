"""Figures of a run."""

from crosschannel.report.curve import validation_curve

__all__ = ["validation_curve"]
