"""Command line of `crosschannel`."""

import sys

from crosschannel.command import Command
from crosschannel.commands.next_steps import probe_templates
from crosschannel.program import Program, run_program

PROGRAM = Program(
    "crosschannel",
    "Self-supervised visual representation learning by cross-channel prediction.",
    {
        "pretrain": Command(
            "crosschannel.commands.config:pretrain_keys",
            "crosschannel.commands.pretrain:main",
            "learn a representation from unlabelled images",
            selector="task",
            next_steps="crosschannel.commands.next_steps:pretrain",
        ),
        "colorize": Command(
            "crosschannel.commands.config:ColorizeConfig",
            "crosschannel.commands.colorize:colorize",
            "colorize pictures with a trained model",
            ("images",),
            next_steps=(
                "crosschannel colorize {images[0]} --model {model} --saturation 1.3",
                "crosschannel evaluate --methods {model} grey truth --data COLOUR-PHOTOS",
            ),
        ),
        "evaluate": Command(
            "crosschannel.evaluation.config:EvaluateConfig",
            "crosschannel.evaluation.evaluate:main",
            "score colorizations: AuC, PSNR, classifier top-1, cost",
            next_steps="crosschannel.commands.next_steps:evaluate",
        ),
        "prior": Command(
            "crosschannel.commands.config:PriorConfig",
            "crosschannel.commands.prior:estimate_prior",
            "estimate the ab prior of a set of images",
            next_steps=(
                "crosschannel pretrain --config colornet --objective.prior {out} --data {data}",
                "crosschannel pretrain --config alexnet --objective.prior {out} --data {data}",
            ),
        ),
        "shard": Command(
            "crosschannel.commands.config:ShardConfig",
            "crosschannel.commands.shard:shard",
            "pack images into indexed tar shards",
            ("data", "out"),
            next_steps=(
                "crosschannel pretrain --config alexnet --data {out} --out runs/a-0",
                "crosschannel-slurm submit --profile a100 -- crosschannel pretrain --config alexnet --data {out}",
            ),
        ),
        "export": Command(
            "crosschannel.commands.config:ExportConfig",
            "crosschannel.commands.export:export",
            "export a backbone to other libraries, with a model card",
            ("backbone",),
            {"layers": "layer"},
            next_steps="crosschannel.commands.next_steps:export",
        ),
        "import": Command(
            "crosschannel.commands.config:ImportConfig",
            "crosschannel.commands.import_weights:import_file",
            "convert third-party weights to a crosschannel file",
            ("file",),
            {"as": "name"},
            next_steps=probe_templates("{out}"),
        ),
        "push": Command(
            "crosschannel.commands.config:PushConfig",
            "crosschannel.commands.export:push",
            "upload a backbone to the Hugging Face Hub",
            ("backbone", "repository"),
            next_steps=probe_templates("hf-hub:{repository}"),
        ),
        "zoo": Command(
            "crosschannel.commands.config:ZooConfig",
            "crosschannel.commands.zoo:show",
            "list published weights that are available by name",
            next_steps=("crosschannel fetch eccv16", "crosschannel colorize photo.jpg"),
        ),
        "fetch": Command(
            "crosschannel.commands.config:FetchConfig",
            "crosschannel.commands.zoo:fetch_source",
            "download weights in advance, for example on a login node",
            ("source",),
            next_steps="crosschannel.commands.next_steps:fetch",
        ),
        "study build": Command(
            "crosschannel.study.config:StudyBuildConfig",
            "crosschannel.study.build:build",
            "generate the pictures for a real-or-fake perception study",
            next_steps=("crosschannel study serve {out}",),
        ),
        "study serve": Command(
            "crosschannel.study.config:StudyServeConfig",
            "crosschannel.study.server:run",
            "serve the web pages of a study to participants",
            ("study",),
            next_steps=("crosschannel study report {study} --out {study}-report",),
        ),
        "study report": Command(
            "crosschannel.study.config:StudyReportConfig",
            "crosschannel.study.report:report",
            "report how often participants of a study were fooled",
            ("study",),
            next_steps=("crosschannel evaluate --methods METHODS --data DATA --realism {out}/fooled.csv",),
        ),
        "demo": Command(
            "crosschannel.demo.config:DemoConfig",
            "crosschannel.demo.server:demo",
            "serve a web page that colorizes pictures",
            next_steps="crosschannel.commands.next_steps:demo",
        ),
        "layers": Command(
            "crosschannel.commands.config:LayersConfig",
            "crosschannel.commands.layers:show",
            "list the layers of a backbone",
            ("backbone",),
            next_steps=probe_templates("{backbone}"),
        ),
        "configs": Command(
            "crosschannel.commands.config:ConfigsConfig",
            "crosschannel.commands.configs:show",
            "list the packaged configs",
            next_steps=(
                "crosschannel pretrain --config alexnet --help",
                "crosschannel pretrain --config alexnet --data DATA --print_config",
            ),
        ),
    },
)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code; see :func:`~crosschannel.program.run_program`."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
