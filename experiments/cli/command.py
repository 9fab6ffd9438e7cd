"""What the commands share: flags, help, and errors as the person who gets them wants to read them."""

import ast
import ctypes
import ctypes.util
import json
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict

from experiments.cli import compilation_cache, distributed
from llm4rec_jax.registry import unknown_name

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_ALONE = "this command runs in one process: leave --distributed, --coordinator, --processes and --process out"

_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")


def answer(result: Mapping[str, Any]) -> None:
    """The last line of standard output: the result as JSON, from the first process only."""
    if jax.process_index() == 0:
        print(json.dumps(result))


def workdir() -> Path:
    """The folder that --workdir names."""
    assert _WORKDIR.value is not None
    return Path(_WORKDIR.value)


def _keep_memory() -> None:
    """Lets glibc keep the memory it has freed.

    XLA on a CPU allocates a program's temporary buffers anew at every step; by default each large one is mapped, zeroed
    page by page and unmapped again, which took a quarter of the time of a training step.
    """
    library = ctypes.util.find_library("c")
    if sys.platform != "linux" or library is None:
        return
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None)
    if mallopt is not None:
        # Other arenas than the first map what is large, whatever the other settings.
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)


def run(main: Callable[[], None], several: bool = False, joins: bool = True, needs_workdir: bool = True) -> None:
    """Runs a command, on a --workdir unless it needs none.

    An error that its user can mend is one message and exit code 2; others keep their traceback.

    Args:
      main: the command.
      several: whether several processes can run it as one program.
      joins: whether they are joined before it begins; otherwise it sees to that.
      needs_workdir: whether --workdir must be given.
    """
    if needs_workdir:
        flags.mark_flag_as_required("workdir")

    def without_arguments(arguments: list[str]) -> None:
        if arguments:
            raise app.UsageError(f"does not take {' '.join(arguments)!r}: options are written --name=value")
        if distributed.wanted() and not several:
            raise ValueError(_ALONE)
        if joins:
            distributed.join()
        main()

    _run(without_arguments)


def run_on(main: Callable[[list[str]], None], what: str) -> None:
    """Runs a command on its arguments, each a `what`; errors are as those of `run`."""

    def with_arguments(arguments: list[str]) -> None:
        if not arguments:
            raise app.UsageError(f"needs at least one {what}")
        if distributed.wanted():
            raise ValueError(_ALONE)
        main(arguments)

    _run(with_arguments)


def _unknown_key(arguments: list[str]) -> str | None:
    """Words the error for the first --config.KEY that the configuration does not have; None where all are there."""
    found = re.search(r"(?:^|\n)--?config[=\n](.*)", "\n".join(arguments))
    if found is None:
        return None
    config = flags.FLAGS["config"].parser.parse(found[1])
    for argument in arguments:
        given = re.match(r"--?(?:no)?config\.([^=]+)(?:=(.*))?", argument)
        if given is None:
            continue
        table, keys = config, given[1].split(".")
        for depth, key in enumerate(keys):
            if not isinstance(table, ConfigDict):
                break
            if key not in table:
                where = ".".join(["config", *keys[:depth]])
                return unknown_name(f"key of {where}:", key, table.keys()) + _as_a_dictionary(keys, given[2])
            table = table[key]
    return None


def _as_a_dictionary(keys: list[str], value: str | None) -> str:
    """How to give an option that a file does not set: only its whole table is a key."""
    at = next((i for i, key in enumerate(keys) if key.endswith("options")), None)
    if at is None:
        return ""
    try:
        ast.literal_eval(value or "True")
        literal = value or "True"
    except (SyntaxError, ValueError):
        literal = repr(value)
    for key in reversed(keys[at + 1 :]):
        literal = f"{{{key!r}: {literal}}}"
    table = ".".join(keys[: at + 1])
    return f'. An option that the file does not set is given with its table: --config.{table}="{literal}"'


def _run(main: Callable[[list[str]], None]) -> None:
    _keep_memory()
    compilation_cache.enable()
    # Orbax and Grain log every step they take, at a level that absl shows by default.
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
    wants_help = any(argument.startswith(("--help", "-help")) or argument == "-h" for argument in sys.argv[1:])

    def guarded(arguments: list[str]) -> None:
        with distributed.exit_all_on_error():
            try:
                main(arguments[1:])
            except (ValueError, OSError, ArithmeticError) as error:
                if _DEBUG.value:
                    raise
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
            except Exception as error:
                # What nobody has foreseen keeps its traceback, and ends in what to do about it.
                traceback.print_exc()
                print(
                    f"error: {type(error).__name__}: {error}. Either this is a bug, or input that should have been "
                    "refused: please report it with the lines above and the command",
                    file=sys.stderr,
                )
                sys.exit(1)

    def parse(arguments: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(arguments)
        except Exception as error:
            if isinstance(error, flags.Error):
                raise
            trace = traceback.extract_tb(error.__traceback__)
            if not isinstance(error, OSError) and "ml_collections" not in trace[-1].filename:
                # A configuration is a program: its author wants the traceback too.
                traceback.print_exc()
                print(f"error: --config: {type(error).__name__}: {error}", file=sys.stderr)
                sys.exit(2)
            # An unknown key or a missing file of --config.
            print(f"error: {_unknown_key(arguments[1:]) or f'--config: {error}'}", file=sys.stderr)
            sys.exit(2)

    try:
        app.run(guarded, flags_parser=parse)
    except SystemExit as end:
        # absl ends --help with 1.
        sys.exit(0 if wants_help and end.code == 1 else end.code)
