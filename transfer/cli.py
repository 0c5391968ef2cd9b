"""`transfer COMMAND …`."""

import sys

from crosschannel import command_line
from crosschannel.command_line import Command, Program

PROGRAM = Program(
    "transfer",
    "Measure what a backbone has learned: linear probes on frozen layers, kNN, and comparisons of runs.",
    {
        "linear-probe": Command(
            "transfer.protocols.linear_probe",
            "LinearProbeConfig",
            "run",
            "linear classifiers on the layers of a frozen backbone",
        ),
        "knn": Command(
            "transfer.protocols.knn",
            "KNNConfig",
            "run",
            "nearest neighbours in the features of a frozen backbone",
        ),
        "compare": Command(
            "transfer.comparison",
            "CompareConfig",
            "run",
            "the difference of two runs, with an interval over images",
            ("runs",),
        ),
        "report": Command(
            "transfer.report",
            "ReportConfig",
            "run",
            "any number of runs as one page of tables and plots",
            ("runs",),
        ),
    },
    configs="transfer",
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved."""
    return command_line.main(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
