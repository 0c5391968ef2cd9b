"""`transfer COMMAND …`: a command a protocol, and those on finished runs."""

import sys

from crosschannel.command import Command
from crosschannel.program import Program, run_program
from transfer.protocols import ENTRY_POINTS, PROTOCOLS, protocol_command, user_command

PROGRAM = Program(
    "transfer",
    "Measure what a backbone has learned: probes on frozen layers, fine-tuning, and comparisons of runs.",
    {
        **{name: protocol_command(entry.config, entry.help) for name, entry in PROTOCOLS.items()},
        "proposals": Command(
            "transfer.config:ProposalsConfig",
            "transfer.proposals.command:main",
            "boxes that may hold an object, by selective search",
            next_steps="transfer.next_steps:proposals",
        ),
        "predict": Command(
            "transfer.config:PredictConfig",
            "transfer.predict:main",
            "what a finished run says of any pictures: masks, boxes or scores",
            ("run", "images"),
            next_steps=("transfer report {run} --out report", "transfer compare {run} RUN"),
        ),
        "compare": Command(
            "transfer.config:CompareConfig",
            "transfer.comparison:main",
            "the difference of two runs, with an interval over images",
            ("runs",),
            next_steps="transfer.next_steps:compare",
        ),
        "report": Command(
            "transfer.config:ReportConfig",
            "transfer.report:main",
            "any number of runs as one page of tables and plots",
            ("runs",),
            next_steps="transfer.next_steps:report",
        ),
    },
    configs="transfer",
    user_command=user_command,
    entry_points=ENTRY_POINTS,
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
