"""First lines of a run: preprocessing and weights of its backbone."""

from crosschannel.models.backbone import Backbone


def describe_input(backbone: Backbone, size: int = 0, resize: int = 0) -> list[str]:
    """Describe a backbone's preprocessing, its origin and the options that change it, one string per line.

    A line about the weights file is added if its names had a prefix or some weights were not used.

    Args:
        backbone: any backbone.
        size, resize: values from a command's config; 0 keeps the backbone's own.
    """
    input, details = backbone.input.changed(size=size or None, resize=resize or None), backbone.provenance.details
    attributes = [f"size {input.size}", f"resize {input.resize}", f"interpolation {input.interpolation}"]
    if input.kind not in ("grey", "lab"):
        attributes += [f"{key} {':'.join(f'{value:.4g}' for value in getattr(input, key))}" for key in ("mean", "std")]
    origin = details.get("preprocessing", "the net's own")
    origin += ", with size and resize of the config" if input != backbone.input else ""
    keys = ", ".join(f"{attribute.split()[0]}=" for attribute in attributes)
    attributes += [f"scale {input.scale:.4g}"] if input.scale != 1 else []
    lines = [f"input: {input.kind}, {', '.join(attributes)} (from {origin}; SOURCE,{keys} change it)"]
    return [*lines, *([f"weights: {details['checkpoint']}"] if "checkpoint" in details else [])]
