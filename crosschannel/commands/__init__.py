"""Functions of the `crosschannel` commands, one module per command, and their config dataclasses (``config``)."""
