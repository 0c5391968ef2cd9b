"""The `transfer` program: one command per protocol, and commands for finished runs."""

import sys

from crosschannel.command import Command
from crosschannel.program import Program, run_program
from transfer.protocols import ENTRY_POINTS, PROTOCOLS, protocol_command, user_command

PROGRAM = Program(
    "transfer",
    "Evaluate pretrained backbones: probes on frozen layers, fine-tuning, and comparisons of runs.",
    {
        **{name: protocol_command(entry.config, entry.help) for name, entry in PROTOCOLS.items()},
        "proposals": Command(
            "transfer.config:ProposalsConfig",
            "transfer.proposals.command:main",
            "compute object proposals by selective search",
            next_steps="transfer.next_steps:proposals",
        ),
        "predict": Command(
            "transfer.config:PredictConfig",
            "transfer.predict:main",
            "predict masks, boxes or class scores for pictures with a finished run",
            ("run", "images"),
            next_steps=("transfer report {run} --out report", "transfer compare {run} RUN"),
        ),
        "compare": Command(
            "transfer.config:CompareConfig",
            "transfer.comparison:main",
            "compare two runs, with confidence intervals over images",
            ("runs",),
            next_steps="transfer.next_steps:compare",
        ),
        "report": Command(
            "transfer.config:ReportConfig",
            "transfer.report:main",
            "write one page of tables and plots from any number of runs",
            ("runs",),
            next_steps="transfer.next_steps:report",
        ),
    },
    configs="transfer",
    user_command=user_command,
    entry_points=ENTRY_POINTS,
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return the exit code: 0 success, 2 bad input, 75 interrupted with progress saved."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
