"""Prints a script by which a shell completes programs, flags, studies and configuration keys of `llm4rec`.

source <(llm4rec completion bash)    # in ~/.bashrc
source <(llm4rec completion zsh)     # in ~/.zshrc, after compinit
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from experiments.cli import command, studies
from llm4rec_jax import command_line
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs.schema import default_config

_BASH = r"""
_llm4rec() {
    local word="${COMP_LINE:0:COMP_POINT}" before
    word="${word##* }"
    # Readline replaces only what stands after the last = or : of a word.
    before="${word%"${word##*[=:]}"}"
    COMPREPLY=($(compgen -W "$(_llm4rec_words "$COMP_CWORD" "${COMP_WORDS[1]}" "$word")" -- "$word"))
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
}
complete -o nospace -o default -F _llm4rec llm4rec
"""
_ZSH = r"""
_llm4rec() {
    local -a candidates
    candidates=(${=$(_llm4rec_words "$((CURRENT - 1))" "$words[2]" "$PREFIX")})
    compadd -S '' -a candidates && return
    compset -P '*='  # files after --workdir=
    _files
}
compdef _llm4rec llm4rec
"""
_TEMPLATES = {"bash": _BASH, "zsh": _ZSH}


def flags_of(program: str) -> list[str]:
    """Returns the flags of a program as "--name=", or "--name" for switches, from the source of its modules.

    Importing the programs would define the flags of all in one process, where some have one name.

    Example:
      >>> [flag for flag in flags_of("recommend") if flag in ("--k=", "--workdir=", "--debug", "--workers=")]
      ['--debug', '--k=', '--workdir=']
      >>> [flag for flag in flags_of("completion") if flag in ("--processes=", "--workers=")]
      []
    """
    folder = command_line.programs_folder() / "experiments"
    sources = [folder / f"{program.replace('-', '_')}.py", folder / "cli" / "command.py"]
    text = sources[0].read_text(encoding="utf-8")
    if re.search(r"^from .* import .*\blaunch\b", text, re.MULTILINE):
        sources.append(folder / "cli" / "launch.py")
    if re.search(r"\brun\(main, several=True", text):
        sources.append(folder / "cli" / "distributed.py")
    return sorted({flag for source in sources for flag in _defined(source)})


def _defined(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        kind = ast.unparse(node.func).partition(".DEFINE_")[2]
        if kind not in ("", "alias") and isinstance(name := node.args[0], ast.Constant):
            yield f"--{name.value}" if kind == "bool" else f"--{name.value}="


def keys(table: ConfigDict, prefix: str = "--config.") -> Iterator[str]:
    """Yields the flag of every key of a configuration, such as "--config.train.steps="; a table of options is one."""
    for name, value in table.items():
        if isinstance(value, ConfigDict) and not name.endswith("options"):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}="


def script(shell: str) -> str:
    """Returns the completion script of a shell, "bash" or "zsh"."""
    if shell not in _TEMPLATES:
        raise ValueError(unknown_name("shell", shell, _TEMPLATES))
    programs = list(command_line.programs())
    flags = "\n".join(f"        {program}) echo '{' '.join(flags_of(program))}' ;;" for program in programs)
    return f"""# Completion of llm4rec for {shell}.
_llm4rec_words() {{
    if [ "$1" -le 1 ]; then
        echo '{" ".join(programs)}'
        return
    fi
    case "$3" in
        --config=*|--spec=*) echo '{" ".join(f"--config={name} --spec={name}" for name in studies.names())}'; return ;;
        --config.*) echo '{" ".join(keys(default_config()))}'; return ;;
    esac
    case "$2" in
{flags}
    esac
}}
{_TEMPLATES[shell].strip()}
"""


def main(shells: list[str]) -> None:
    print(script(shells[0]), end="")


if __name__ == "__main__":
    command.run_on(main, f"shell: {' or '.join(_TEMPLATES)}")
