"""What one would type next: after every command, the commands that go on from what it has made. No torch here."""

import shlex
from pathlib import Path
from typing import Any


def typed(*words: object) -> str:
    """A command as one would type it."""
    return shlex.join(map(str, words))


def pretrain(config: Any) -> list[str]:
    data = config.data if _has_classes(config.data) else "DATA"
    recipe = "quickstart" if data == "builtin:sample" else "imagenette"
    probe = ("transfer", "linear-probe", "--config", recipe, "--backbone", config.out, "--data", data)
    if not (Path(config.out) / "colorizer.safetensors").is_file():
        return [typed(*probe), typed("crosschannel", "export", config.out, "--out", "weights/backbone.safetensors")]
    picture = "builtin:sample" if config.data == "builtin:sample" else "photo.jpg"
    return [typed("crosschannel", "colorize", picture, "--model", config.out), typed(*probe)]


def _has_classes(data: str) -> bool:
    from crosschannel.data.datasets import kind_of

    return kind_of(data).has_classes(data)


def colorize(config: Any) -> list[str]:
    more = typed("crosschannel", "colorize", config.images[0], "--model", config.model, "--saturation", 1.3)
    score = typed("crosschannel", "evaluate", "--methods", config.model, "grey", "truth", "--data", "COLOUR-PHOTOS")
    return [more, score]


def evaluate(config: Any) -> list[str]:
    from crosschannel.evaluation.config import parse_methods

    names = [method.name for method in parse_methods(config.methods) if method.source != "truth"]
    pair = [f"{config.out}:{name}" for name in names[:2]]
    report = typed("transfer", "report", config.out, "--out", f"{config.out}-report")
    return [*([typed("transfer", "compare", *pair)] if len(pair) == 2 else []), report]


def prior(config: Any) -> list[str]:
    told = ("--objective.prior", config.out, "--data", config.data)
    return [typed("crosschannel", "pretrain", "--config", net, *told) for net in ("colornet", "alexnet")]


def shard(config: Any) -> list[str]:
    pretrain = ("crosschannel", "pretrain", "--config", "alexnet", "--data", config.out, "--out", "runs/alexnet-0")
    return [typed(*pretrain), typed("crosschannel-slurm", "submit", "--profile", "a100", "--", *pretrain)]


def export(config: Any) -> list[str]:
    push = typed("crosschannel", "push", config.backbone, "OWNER/NAME")
    if config.format != "safetensors":
        return [push]
    probe = ("transfer", "linear-probe", "--config", "imagenette", "--backbone", config.out, "--data", "DATA")
    return [typed(*probe), push]


def loaded(source: str) -> list[str]:
    """From weights that were brought here."""
    probe = ("transfer", "linear-probe", "--config", "imagenette", "--backbone", source, "--data", "DATA")
    return [typed(*probe), typed("transfer", "knn", "--backbone", source, "--data", "DATA")]


def import_file(config: Any) -> list[str]:
    return loaded(config.out)


def push(config: Any) -> list[str]:
    return loaded(f"hf-hub:{config.repository}")


def fetch(config: Any) -> list[str]:
    source = config.source if ":" in config.source else f"zoo:{config.source}"
    colour = [typed("crosschannel", "colorize", "photo.jpg", "--model", source)] if source == "zoo:eccv16" else []
    return [*colour, *loaded(source)][:2]


def zoo(_config: Any) -> list[str]:
    return [typed("crosschannel", "fetch", "eccv16"), typed("crosschannel", "colorize", "photo.jpg")]


def study_build(config: Any) -> list[str]:
    return [typed("crosschannel", "study", "serve", config.out)]


def study_serve(config: Any) -> list[str]:
    return [typed("crosschannel", "study", "report", config.study, "--out", f"{config.study.rstrip('/')}-report")]


def study_report(config: Any) -> list[str]:
    evaluate = ("crosschannel", "evaluate", "--methods", "METHODS", "--data", "DATA")
    return [typed(*evaluate, "--realism", f"{config.out}/fooled.csv")]


def demo(config: Any) -> list[str]:
    if config.static:
        return [typed("python", "-m", "http.server", "--directory", config.static)]
    return [typed("crosschannel", "demo", "--model", config.model, "--static", "demo")]


def configs(_config: Any) -> list[str]:
    pretrain = ("crosschannel", "pretrain", "--config", "alexnet")
    return [typed(*pretrain, "--help"), typed(*pretrain, "--data", "DATA", "--print_config")]


def layers(config: Any) -> list[str]:
    return loaded(config.backbone)
