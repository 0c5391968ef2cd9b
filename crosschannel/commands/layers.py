"""`crosschannel layers`: list the layers of a backbone."""

from crosschannel.commands.config import LayersConfig
from crosschannel.console import stderr_console, stdout_console, table
from crosschannel.hub import load_backbone
from crosschannel.models.describe import describe_input


def show(config: LayersConfig) -> None:
    """Print the layers in execution order, the expected input, and the layers without features.

    Raises:
        UserError: an invalid source.
    """
    backbone = load_backbone(config.backbone)
    channels, strides = backbone.channels, backbone.strides
    rows = {name: [str(channels[name]), str(strides[name])] for name in backbone.layers if name in channels}
    stdout_console(soft_wrap=False).print(table(rows, ["layer", "channels", "stride"]))
    for line in describe_input(backbone):
        stderr_console().print(line)
    for reason in getattr(backbone.net, "left_out", {}).values():
        stderr_console().print(f"excluded: {reason}")
