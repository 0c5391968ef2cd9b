"""`crosschannel COMMAND …`."""

import sys

import crosschannel
from crosschannel import command_line
from crosschannel.command_line import Command, Program

PROGRAM = Program(
    "crosschannel",
    crosschannel.__doc__.splitlines()[0],
    {
        "pretrain": Command(
            "crosschannel.commands.pretrain",
            "PretrainConfig",
            "pretrain",
            "learn a representation from unlabelled images",
        ),
        "colorize": Command(
            "crosschannel.commands.colorize",
            "ColorizeConfig",
            "colorize",
            "colour pictures with a trained net",
            ("images",),
        ),
        "prior": Command(
            "crosschannel.commands.prior",
            "PriorConfig",
            "estimate_prior",
            "estimate the ab prior of a collection of images",
        ),
        "shard": Command(
            "crosschannel.commands.shard",
            "ShardConfig",
            "shard",
            "pack images into indexed tar shards",
            ("data", "out"),
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved."""
    return command_line.main(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
