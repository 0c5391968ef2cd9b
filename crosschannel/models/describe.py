"""Description of a backbone's preprocessing and weights, printed at the start of a command."""

from crosschannel.models.backbone import Backbone


def describe_input(backbone: Backbone, size: int = 0, resize: int = 0) -> list[str]:
    """Describe the preprocessing of a backbone, its origin, and the source options that change it, as lines of text.

    If the weights file needed conversion (names with a prefix, or unused weights), another line describes that.

    Args:
        backbone: any backbone.
        size, resize: values from a command's config; 0 keeps those of the backbone.
    """
    input, details = backbone.input.changed(size=size or None, resize=resize or None), backbone.provenance.details
    attributes = [f"size {input.size}", f"resize {input.resize}", f"interpolation {input.interpolation}"]
    if input.kind not in ("grey", "lab"):
        attributes += [f"{key} {':'.join(f'{value:.4g}' for value in getattr(input, key))}" for key in ("mean", "std")]
    origin = details.get("preprocessing", "the net's input spec")
    origin += ", with size and resize from the config" if input != backbone.input else ""
    options = ", ".join(f"{attribute.split()[0]}=" for attribute in attributes)
    attributes += [f"scale {input.scale:.4g}"] if input.scale != 1 else []
    lines = [f"input: {input.kind}, {', '.join(attributes)} (from {origin}; change it with SOURCE,{options})"]
    return [*lines, *([f"weights: {details['checkpoint']}"] if "checkpoint" in details else [])]
