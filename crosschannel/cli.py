"""`crosschannel COMMAND …`."""

import sys

from crosschannel import command_line
from crosschannel.command_line import Command, Program

PROGRAM = Program(
    "crosschannel",
    "Self-supervised visual representation learning by cross-channel prediction.",
    {
        "pretrain": Command(
            "crosschannel.commands.config:pretrain_keys",
            "crosschannel.commands.pretrain:main",
            "learn a representation from unlabelled images",
            by="task",
            after="crosschannel.commands.after:pretrain",
        ),
        "colorize": Command(
            "crosschannel.commands.config:ColorizeConfig",
            "crosschannel.commands.colorize:colorize",
            "colour pictures with a trained net",
            ("images",),
            after="crosschannel.commands.after:colorize",
        ),
        "evaluate": Command(
            "crosschannel.evaluation.config:EvaluateConfig",
            "crosschannel.evaluation.evaluate:main",
            "score colourings: AuC, PSNR, a classifier's top-1, cost",
            after="crosschannel.commands.after:evaluate",
        ),
        "prior": Command(
            "crosschannel.commands.config:PriorConfig",
            "crosschannel.commands.prior:estimate_prior",
            "estimate the ab prior of a collection of images",
            after="crosschannel.commands.after:prior",
        ),
        "shard": Command(
            "crosschannel.commands.config:ShardConfig",
            "crosschannel.commands.shard:shard",
            "pack images into indexed tar shards",
            ("data", "out"),
            after="crosschannel.commands.after:shard",
        ),
        "export": Command(
            "crosschannel.commands.config:ExportConfig",
            "crosschannel.commands.export:export",
            "a backbone for other libraries, with a model card",
            ("backbone",),
            {"layers": "layer"},
            after="crosschannel.commands.after:export",
        ),
        "import": Command(
            "crosschannel.commands.config:ImportConfig",
            "crosschannel.commands.import_weights:import_file",
            "other people's weights as ours",
            ("file",),
            {"as": "name"},
            after="crosschannel.commands.after:import_file",
        ),
        "push": Command(
            "crosschannel.commands.config:PushConfig",
            "crosschannel.commands.export:push",
            "a backbone to the Hugging Face Hub",
            ("backbone", "repository"),
            after="crosschannel.commands.after:push",
        ),
        "zoo": Command(
            "crosschannel.commands.config:ZooConfig",
            "crosschannel.commands.zoo:show",
            "list published weights that have a name",
            after="crosschannel.commands.after:zoo",
        ),
        "fetch": Command(
            "crosschannel.commands.config:FetchConfig",
            "crosschannel.commands.zoo:fetch_source",
            "download weights ahead, on a login node",
            ("source",),
            after="crosschannel.commands.after:fetch",
        ),
        "study build": Command(
            "crosschannel.study.config:StudyBuildConfig",
            "crosschannel.study.build:build",
            "the pictures of a perception study: real or fake?",
            after="crosschannel.commands.after:study_build",
        ),
        "study serve": Command(
            "crosschannel.study.config:StudyServeConfig",
            "crosschannel.study.server:run",
            "its web pages, for participants",
            ("study",),
            after="crosschannel.commands.after:study_serve",
        ),
        "study report": Command(
            "crosschannel.study.config:StudyReportConfig",
            "crosschannel.study.report:report",
            "how often people were fooled",
            ("study",),
            after="crosschannel.commands.after:study_report",
        ),
        "demo": Command(
            "crosschannel.demo.config:DemoConfig",
            "crosschannel.demo.server:demo",
            "a web page that colours pictures",
            after="crosschannel.commands.after:demo",
        ),
        "layers": Command(
            "crosschannel.commands.config:LayersConfig",
            "crosschannel.commands.layers:show",
            "list the layers of a backbone",
            ("backbone",),
            after="crosschannel.commands.after:layers",
        ),
        "configs": Command(
            "crosschannel.commands.config:ConfigsConfig",
            "crosschannel.help:show_configs",
            "list the packaged configs",
            after="crosschannel.commands.after:configs",
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line; returns the exit code: 0 done, 2 bad input, 75 interrupted and saved."""
    return command_line.main(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
