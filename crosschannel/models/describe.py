"""The first lines of a run: preprocessing and weights of its backbone."""

from crosschannel.models.backbone import Backbone


def describe_input(backbone: Backbone, size: int = 0, resize: int = 0) -> list[str]:
    """Lines that say what a backbone's images become before it sees them, where that comes from and how to change it.

    A line about the file is added if its weights stood under a prefix, or not all of them were used.

    Args:
        backbone: any.
        size, resize: of a command's config; 0: the backbone's own.
    """
    input, details = backbone.input.changed(size=size or None, resize=resize or None), backbone.provenance.details
    look = [f"size {input.size}", f"resize {input.resize}", f"interpolation {input.interpolation}"]
    if input.kind not in ("grey", "lab"):
        look += [f"{key} {':'.join(f'{number:.4g}' for number in getattr(input, key))}" for key in ("mean", "std")]
    origin = details.get("preprocessing", "the net's own")
    origin += ", with size and resize of the config" if input != backbone.input else ""
    keys = ", ".join(f"{word.split()[0]}=" for word in look)
    look += [f"scale {input.scale:.4g}"] if input.scale != 1 else []
    lines = [f"input: {input.kind}, {', '.join(look)} (from {origin}; SOURCE,{keys} change it)"]
    return [*lines, *([f"weights: {details['checkpoint']}"] if "checkpoint" in details else [])]
