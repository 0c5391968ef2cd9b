"""What is declared beside the keys of a config, and the one check of it.

A range stands in a key's type, ``lr: Annotated[float, above(0)] = 1e-3``; rules between keys are a config's ``check``
method. Both are looked at by :func:`check_config`, when a command line is parsed and when a protocol is called.
"""

import math
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from crosschannel.errors import UserError, describe

_MOST = 2**63 - 1  # of whole numbers, as files and libraries hold them


@dataclass(frozen=True, repr=False)
class Range:
    """Numbers that a key may have; of lists, each of their numbers.

    Attributes:
        low, high: its ends, allowed unless they are open.
        words: how a message has it.
    """

    low: float
    high: float
    words: str
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __repr__(self) -> str:
        return self.words


@dataclass(frozen=True, repr=False)
class Spelling:
    """Strings that a key may have."""

    pattern: str
    words: str

    def holds(self, value: Any) -> bool:
        return not isinstance(value, str) or re.fullmatch(self.pattern, value, re.DOTALL) is not None

    def __repr__(self) -> str:
        return self.words


def at_least(low: int, most: float = _MOST) -> Range:
    """From ``low`` on; past ``most`` nobody can mean it."""
    return Range(low, most, f"at least {low}" + ("" if most == _MOST else f" and at most {most:g}"))


def above(low: float, most: float = 1e9) -> Range:
    """Greater than ``low``; past ``most`` nobody can mean it."""
    return Range(low, most, f"above {low:g} and at most {most:g}", open_low=True)


def within(low: float, high: float) -> Range:
    """From ``low`` to ``high``, both allowed."""
    return Range(low, high, f"within {low}..{high}")


def below(high: float) -> Range:
    """From 0 to ``high``, which is not allowed."""
    return Range(0, high, f"within 0..{high} and below {high}", open_high=True)


def between(low: float, high: float) -> Range:
    """Greater than ``low`` and less than ``high``."""
    return Range(low, high, f"between {low} and {high}", open_low=True, open_high=True)


SEED = Range(0, _MOST, "within 0..2^63-1")
SIDE = at_least(1, 4096)  # of what nets see, in pixels
FC_WIDTH = at_least(0, 65536)
LINE = Spelling(r"[^\n\r]*", "one line")
HOST = Spelling(
    # A full IPv4 address, an IPv6 address, or a name. The last label of a name must not look like a number, since the
    # system also parses 0, 127.1 and 0x7f000001 as addresses.
    r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.(?!$)|$)){4}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%[\w.-]+)?"
    r"|([A-Za-z0-9_-]{1,63}\.)*(?=[A-Za-z_]|[A-Za-z0-9_-]*[g-wyzG-WYZ_-])[A-Za-z0-9_-]{1,63}",
    "a host name or a full IP address, such as 127.0.0.1 (this machine only) or 0.0.0.0 (every interface)",
)

Host = Annotated[str, HOST]
Seed = Annotated[int, SEED]
Device = Annotated[str, Spelling(r"auto|cpu|cuda(:\d{1,3})?", "auto, cpu, cuda or cuda:N")]
Text = Annotated[str, Spelling("[^\ud800-\udfff]*", "UTF-8 text")]  # what is written into files of ours
Line = Annotated[str, LINE]
Out = Annotated[str, Spelling("[^\ud800-\udfff]+", "the name of a file or folder, in UTF-8")]
Workers = Annotated[int, at_least(0, 1024)]
Count = Annotated[int, at_least(1)]
Share = Annotated[float, within(0, 1)]
Part = Annotated[float, between(0, 1)]


def check_config(config: Any, prefix: str = "") -> None:
    """Raise a :class:`UserError` for the first key of a config dataclass that cannot be; nested ones first.

    Every number is finite and every string free of NUL, whatever is declared.
    """
    for key, hint in get_type_hints(type(config), include_extras=True).items():
        if key not in {entry.name for entry in fields(config)}:
            continue
        name, value = prefix + key, getattr(config, key)
        if is_dataclass(hint):
            if not isinstance(value, hint):
                raise UserError(f"{name} is a group of keys, got {value!r}")
            check_config(value, f"{name}.")
            continue
        if not fits(value, hint):
            raise UserError(f"{name} must be {describe_type(hint)}, got {value!r}")
        for leaf in _leaves(value):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise UserError(f"{name} must be a finite number, got {value}")
            if isinstance(leaf, int) and not -_MOST <= leaf <= _MOST:
                raise UserError(f"{name} must be a number of at most 63 bits, got {str(leaf)[:20]}…")
            if isinstance(leaf, str) and "\0" in leaf:
                raise UserError(f"{name} holds a NUL character: {leaf!r}")
            for rule in declared(hint):
                if not rule.holds(leaf):
                    raise UserError(f"{name} must be {rule.words}, got {value!r}")
    if hasattr(config, "check"):
        config.check()


def require_config(config: Any, kind: type) -> None:
    """Check the config of a command that is called from Python.

    Raises:
        UserError: another type, or an invalid value of a key.
    """
    if not isinstance(config, kind):
        raise UserError(f"this takes a config, {kind.__name__}(key=value, …), got {describe(config)}")
    check_config(config)


def describe_type(hint: Any) -> str:
    """Describe the type of a key, for a message."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe_type(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (list, tuple):
        return f"a list, each {describe_type(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", dict: "a dictionary"}
    return names.get(origin or hint, "None" if hint is type(None) else getattr(hint, "__name__", str(hint)))


def plain_type(hint: Any) -> Any:
    """A type without what is declared in it, and without None."""
    while get_origin(hint) in (Annotated, Union, types.UnionType):
        hint = next(member for member in get_args(hint) if member is not type(None))
    return hint


def declared(hint: Any) -> tuple[Any, ...]:
    """What is declared in a type, optional or not."""
    members = (hint, *get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return tuple(rule for member in members for rule in getattr(member, "__metadata__", ()))


def require(holds: bool, rule: str, value: object) -> None:
    """Raise a :class:`UserError` where a rule between keys does not hold."""
    if not holds:
        raise UserError(f"{rule}, got {value}")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as annotations have it; a list may stand for a tuple and a tuple for a list."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return isinstance(value, str | bool | int) and value in arguments
    if origin is list:
        return isinstance(value, list | tuple) and all(fits(one, arguments[0]) for one in value)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if isinstance(value, list | tuple) and arguments[-1] is ... else arguments
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    return value is None if hint is type(None) else isinstance(value, hint)
