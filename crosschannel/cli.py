"""`crosschannel COMMAND …`."""

import sys

from crosschannel import command_line
from crosschannel.command_line import Command, Program

PROGRAM = Program(
    "crosschannel",
    "Self-supervised visual representation learning by cross-channel prediction.",
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
        "export": Command(
            "crosschannel.commands.export",
            "ExportConfig",
            "export",
            "a backbone for other libraries, with a model card",
            ("backbone",),
        ),
        "import": Command(
            "crosschannel.commands.import_weights",
            "ImportConfig",
            "import_file",
            "other people's weights as ours",
            ("file",),
            {"as": "name"},
        ),
        "push": Command(
            "crosschannel.commands.export",
            "PushConfig",
            "push",
            "a backbone to the Hugging Face Hub",
            ("backbone", "repository"),
        ),
        "zoo": Command("crosschannel.commands.zoo", "ZooConfig", "show", "list published weights that have a name"),
        "fetch": Command(
            "crosschannel.commands.zoo",
            "FetchConfig",
            "fetch_source",
            "download weights ahead, on a login node",
            ("source",),
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved."""
    return command_line.main(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
