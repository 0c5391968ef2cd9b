"""Figures and pages of runs."""

from crosschannel.report.curve import validation_curve
from crosschannel.report.filters import filter_picture
from crosschannel.report.page import Figure, Heading, Listing, Page, Table, Text
from crosschannel.report.plots import accuracy_by_layer

__all__ = [
    "Figure",
    "Heading",
    "Listing",
    "Page",
    "Table",
    "Text",
    "accuracy_by_layer",
    "filter_picture",
    "validation_curve",
]
