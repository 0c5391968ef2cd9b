"""Signature and docstring of a protocol as a Python function, generated from its config dataclass."""

import inspect
from collections import Counter
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Any

from crosschannel.config.keys import keys_of
from crosschannel.config.load import config_folder

if TYPE_CHECKING:
    from transfer.protocol import Protocol

_POSITIONAL, _KEYWORD = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
_ARGUMENTS = {
    "backbone": "a source string, a Backbone, or any module with named layers (see :func:`crosschannel.wrap`).",
    "layers": '"all", names, or patterns such as ``conv*``.',
    "config": "name of a packaged config{choices}, a YAML file, or a {config}; default: the command's defaults. Its "
    "{ignored} are ignored.",
    "out": "run folder; default: a temporary folder, deleted afterwards.",
    "quiet": "print nothing.",
    "keys": "config keys to override; a key in a group may be shortened to its last component if that is unique.",
}


def positional_signature(protocol: "Protocol") -> Signature:
    """Return the signature of a call without config keys, which ``**keys`` collects."""
    parameters = [Parameter("backbone", _POSITIONAL), Parameter("data", _POSITIONAL)]
    if protocol.positional_key == "layer":
        parameters.append(Parameter("layers", _POSITIONAL, default="all"))
    elif protocol.positional_key:
        parameters.append(Parameter(protocol.positional_key, _POSITIONAL, default=None))
    for name, default in (("config", None), ("out", None), ("quiet", True)):
        parameters.append(Parameter(name, _POSITIONAL, default=default))
    return Signature([*parameters, Parameter("keys", Parameter.VAR_KEYWORD)])


def call_signature(protocol: "Protocol") -> Signature:
    """Return the full signature, with all config keys that are valid identifiers, for ``help()`` and completion."""
    signature = positional_signature(protocol)
    *positional, _ = signature.parameters.values()
    keys = [Parameter(name, _KEYWORD, default=value) for name, value, _ in _keys(protocol) if name.isidentifier()]
    return Signature([*positional, *keys])


def call_docstring(protocol: "Protocol") -> str:
    """Return the docstring of a call: arguments, metrics, and every key with its default."""
    title, _, description = (inspect.getdoc(protocol.config) or "").partition("\n")
    config_names = sorted(path.stem for path in (config_folder() / "transfer" / protocol.name).glob("*.yaml"))
    choices = f" ({', '.join(config_names)})" if config_names else ""
    data = "a value of ``--data``, or (training, test) images and labels; see docs/api.md."
    if protocol.annotations:
        data = f"a value of ``--data``, or (training, test) ImageSets {protocol.annotations}."
    elif hasattr(protocol.config, "val_share"):
        data = "a value of ``--data``, or images and labels, or (training, test) of these; see docs/api.md."
    ignored = "backbone, data and layer" if protocol.positional_key == "layer" else "backbone and data"
    texts = {
        **_ARGUMENTS,
        "data": data,
        protocol.positional_key: f"value of the key {protocol.positional_key!r}; default: the config's value.",
        "config": _ARGUMENTS["config"].format(choices=choices, config=protocol.config.__name__, ignored=ignored),
    }
    arguments = [f"    {name}: {texts[name]}" for name in positional_signature(protocol).parameters]
    keys = [f"    {name} (default {value!r}): {text}" for name, value, text in _keys(protocol)]
    lines = [title, *description.splitlines(), "", "Args:", *arguments, "", "Returns:"]
    lines += [f"    a Result with {protocol.returns or 'its metrics'}.", "", "Raises:", "    UserError: bad input."]
    lines += ["    Interrupted: a signal arrived; with ``out``, progress is saved and the same call resumes."]
    return "\n".join([*lines, "", "Keys:", *keys, ""])


def _keys(protocol: "Protocol") -> list[tuple[str, Any, str]]:
    """Return name, default and description of each key that is not a positional argument.

    Names of keys in a group are shortened to their last component if that is unique.
    """
    arguments = {*positional_signature(protocol).parameters, protocol.positional_key}
    keys = [key for key in keys_of(protocol.config) if key.name not in arguments]
    short_names = {key.name: key.name.rpartition(".")[2] for key in keys}
    counts = Counter(short_names.values())
    names = {
        name: short if counts[short] == 1 and short not in arguments else name for name, short in short_names.items()
    }
    return [(names[key.name], key.default, key.description) for key in keys]
