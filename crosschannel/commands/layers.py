"""`crosschannel layers`: what a backbone's layers are called."""

from crosschannel.commands.config import LayersConfig
from crosschannel.console import stderr_console, stdout_console, table
from crosschannel.hub import load_backbone
from crosschannel.models.describe import describe_input


def show(config: LayersConfig) -> None:
    """Print the layers in order of execution, the input of the net, and the layers left out.

    Raises:
        UserError: no such source.
    """
    backbone = load_backbone(config.backbone)
    channels, strides = backbone.channels, backbone.strides
    rows = {name: [str(channels[name]), str(strides[name])] for name in backbone.layers if name in channels}
    stdout_console(soft_wrap=False).print(table(rows, ["layer", "channels", "stride"]))
    for line in describe_input(backbone):
        stderr_console().print(line)
    for why in getattr(backbone.net, "left_out", {}).values():
        stderr_console().print(f"left out: {why}")
