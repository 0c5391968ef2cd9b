"""Shell completion of commands, flags, configs and choices."""

import contextlib
import os
import shlex
from typing import TYPE_CHECKING

from crosschannel.config.flags import choices_of
from crosschannel.config.keys import keys_of
from crosschannel.errors import UserError

if TYPE_CHECKING:
    from crosschannel.program import Program


def completion_script(program: "Program") -> str:
    """Return the line for ~/.bashrc or ~/.zshrc that enables completion."""
    zsh = '[ -z "$ZSH_VERSION" ] || { autoload -U +X compinit bashcompinit && compinit && bashcompinit; }'
    return f"{zsh}; complete -o default -C '{program.name} --complete' {program.name}"


def complete(program: "Program") -> list[str]:
    """Return the completions of the word at the cursor in ``$COMP_LINE``, for bash's ``complete -C``."""
    # COMP_POINT counts bytes.
    line = os.fsdecode(os.environb.get(b"COMP_LINE", b"")[: int(os.environ.get("COMP_POINT") or 0)])
    with contextlib.suppress(ValueError):  # unclosed quote
        words = shlex.split(line)[1:]
        current = words.pop() if words and not line[-1:].isspace() else ""
        return [word for word in _candidates(program, words) if word.startswith(current)]
    return []


def _candidates(program: "Program", words: list[str]) -> list[str]:
    names = [*program.commands, *program.installed_commands]
    name = max((name for name in names if words[: len(name.split())] == name.split()), key=len, default="")
    if not name:
        index = len(words)
        return list(
            dict.fromkeys(n.split()[index] for n in names if n.split()[:index] == words and n.count(" ") >= index)
        )
    arguments = words[len(name.split()) :]
    previous = arguments.pop() if arguments and arguments[-1].startswith("--") else ""
    with contextlib.suppress(UserError):  # the name of the config or task may be incomplete
        invocation = program.invocation([*name.split(), *arguments])
        config_flag = f"--{invocation.command.config_flag}"
        positional = invocation.command.positional
        keys = [key for key in keys_of(invocation.config_class) if not key.is_hidden and key.name not in positional]
        flags = {f"--{key.name}": key for key in keys}
        if previous == config_flag:
            return sorted(path.stem for path in invocation.configs.glob("*.yaml"))
        if previous in flags and choices_of(flags[previous]):
            return choices_of(flags[previous])
        return [*flags, config_flag, "--help", "--print_config", "--debug"]
    return []
