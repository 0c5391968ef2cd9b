"""Report pages and plots of runs."""

from crosschannel.report.curve import validation_curve
from crosschannel.report.filters import filter_picture
from crosschannel.report.page import Block, Figure, Heading, Listing, Page, Table, Text
from crosschannel.report.plots import accuracy_by_depth, accuracy_by_layer

__all__ = [
    "Block",
    "Figure",
    "Heading",
    "Listing",
    "Page",
    "Table",
    "Text",
    "accuracy_by_depth",
    "accuracy_by_layer",
    "filter_picture",
    "validation_curve",
]
