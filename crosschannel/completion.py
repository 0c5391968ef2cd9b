"""Shell completion of a program: commands, flags, configs and choices."""

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
    """Line for ~/.bashrc or ~/.zshrc that turns completion on."""
    zsh = '[ -z "$ZSH_VERSION" ] || { autoload -U +X compinit bashcompinit && compinit && bashcompinit; }'
    return f"{zsh}; complete -o default -C '{program.name} --complete' {program.name}"


def complete(program: "Program") -> list[str]:
    """Return completions of the word at the cursor of ``$COMP_LINE``, for bash's ``complete -C``."""
    line = os.fsdecode(os.environb.get(b"COMP_LINE", b"")[: int(os.environ.get("COMP_POINT") or 0)])  # counts bytes
    with contextlib.suppress(ValueError):  # an open quote
        words = shlex.split(line)[1:]
        current = words.pop() if words and not line[-1:].isspace() else ""
        return [word for word in _candidates(program, words) if word.startswith(current)]
    return []


def _candidates(program: "Program", words: list[str]) -> list[str]:
    names = [*program.commands, *program.installed_commands]
    name = max((name for name in names if words[: len(name.split())] == name.split()), key=len, default="")
    if not name:
        place = len(words)
        return list(
            dict.fromkeys(n.split()[place] for n in names if n.split()[:place] == words and n.count(" ") >= place)
        )
    rest = words[len(name.split()) :]
    previous = rest.pop() if rest and rest[-1].startswith("--") else ""
    with contextlib.suppress(UserError):  # the config or task name may be incomplete
        invocation = program.invocation([*name.split(), *rest])
        flag = f"--{invocation.command.config_flag}"
        excluded = invocation.command.positional
        flags = [key for key in keys_of(invocation.config_class) if not key.is_hidden and key.name not in excluded]
        keys = {f"--{key.name}": key for key in flags}
        if previous == flag:
            return sorted(path.stem for path in invocation.configs.glob("*.yaml"))
        if previous in keys and choices_of(keys[previous]):
            return choices_of(keys[previous])
        return [*keys, flag, "--help", "--print_config", "--debug"]
    return []
