"""The command `llm4rec`, which runs the programs of `experiments`.

    llm4rec                                                                  # lists them
    llm4rec train --config=movielens_100k:lora --workdir=runs/lora

`llm4rec NAME …` is `python -m experiments.NAME …` in a clone. A wheel holds the programs, and the studies of `configs`,
in `llm4rec_jax/programs`; in a clone they stand beside the package.
"""

import ast
import os
import runpy
import sys
from pathlib import Path

from llm4rec_jax.registry import unknown_name
from llm4rec_jax.version import __version__

_PACKAGE = Path(__file__).resolve().parent


def programs_folder() -> Path:
    """Returns the folder that holds `experiments` and `configs`: inside an installed wheel, or the clone's root."""
    inside = _PACKAGE / "programs"
    return inside if inside.is_dir() else _PACKAGE.parent


def programs() -> dict[str, str]:
    """Returns the first line of each program's docstring by the program's name, such as "new-study"."""
    found = {}
    for file in sorted((programs_folder() / "experiments").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            docstring = ast.get_docstring(ast.parse(text)) or ""
            found[file.stem.replace("_", "-")] = docstring.partition("\n")[0]
    return found


def main() -> None:
    """Runs the program that the first argument names, with the other arguments; lists the programs without one."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name == "--version":
        print(__version__)
        return
    known = programs()
    if name in ("--help", "-h", "help"):
        width = max(map(len, known))
        print("llm4rec PROGRAM --FLAG=VALUE …; llm4rec PROGRAM --help lists the flags of a program.\n")
        print("\n".join(f"  {program:{width}}  {line}" for program, line in known.items()))
        return
    name = name.replace("_", "-")
    if name not in known:
        print(f"error: {unknown_name('program', name, known)}", file=sys.stderr)
        sys.exit(2)
    folder = str(programs_folder())
    # The programs come first. Modules that a study imports are found in the working directory, as by `python -m`.
    sys.path[:] = [folder, *(place for place in sys.path if place != folder), os.getcwd()]
    # A sweep's trials are processes of their own, which find the programs by the same folder.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    sys.argv = [name, *arguments]
    runpy.run_module(f"experiments.{name.replace('-', '_')}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
