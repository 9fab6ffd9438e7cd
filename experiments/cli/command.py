"""The frame of every command: flags, help, and errors that end in one line which says what was wrong."""

import ctypes
import ctypes.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import is_config_flag

from experiments.cli import compilation_cache, distributed, gpu, out_of_memory, overrides, studies
from experiments.cli.console import to_stderr
from llm4rec_jax import progress
from llm4rec_jax.runs import plugins

# glibc's mallopt parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_ALONE = "this command runs in one process: leave --distributed, --coordinator, --processes and --process out"

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, or of the sweep.")
_JSON = flags.DEFINE_bool("json", False, "Print nothing but the result, as one JSON object, to standard output.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print no progress and no messages, only the result, warnings and errors.")
_NOTIFY = flags.DEFINE_string(
    "notify", None, "Command to run at the end; LLM4REC_EXIT_CODE, _SECONDS and _COMMAND tell it how that was."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the whole traceback of an error.")
_TRUST_IMPORTS = flags.DEFINE_list(
    "trust_imports", [], "Modules to import that a run folder's config.json names, joined by commas: they run code."
)
flags.DEFINE_alias("trust-imports", "trust_imports")


def answer(result: Mapping[str, Any]) -> None:
    """Prints the result as one line of JSON, the last of standard output; only the first process does."""
    if jax.process_index() == 0:
        print(json.dumps(result))


def wants_json() -> bool:
    """Returns whether --json is given: the result goes to standard output as JSON, and nothing else does."""
    return _JSON.value


def is_quiet() -> bool:
    """Returns whether --quiet is given: only the result, warnings and errors are printed."""
    return _QUIET.value


def log(text: str) -> None:
    """Prints a message for people; with --json to standard error, with --quiet nowhere. Only the first process does."""
    if not _QUIET.value and jax.process_index() == 0:
        print(text, file=sys.stderr if _JSON.value else sys.stdout, flush=True)


def workdir() -> Path:
    """Returns the folder that --workdir names; ValueError where it is a file."""
    if _WORKDIR.value is None:
        raise ValueError("--workdir is missing")
    folder = Path(_WORKDIR.value)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir={folder} is a file: give a folder, which need not exist yet")
    return folder


def run(main: Callable[[], None], several: bool = False, joins: bool = True, needs_workdir: bool = True) -> None:
    """Runs a command.

    An error that its user can mend is one line and exit code 2; any other keeps its traceback.

    Args:
      main: the command.
      several: whether several processes can run it as one program.
      joins: whether they are joined before it begins; otherwise the command joins them.
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
            progress.set_quiet(_QUIET.value or jax.process_index() > 0)
        main()

    _show_in_help(needs_workdir, several)
    _run(without_arguments)


def run_on(main: Callable[[list[str]], None], what: str, needs_one: bool = True) -> None:
    """Runs a command on its arguments, each a `what`, of which it may need one; errors end as those of `run`."""

    def with_arguments(arguments: list[str]) -> None:
        if needs_one and not arguments:
            raise app.UsageError(f"needs at least one {what}")
        if distributed.wanted():
            raise ValueError(_ALONE)
        main(arguments)

    _show_in_help(False, False)
    _run(with_arguments)


def _show_in_help(needs_workdir: bool, several: bool) -> None:
    """Lists flags of the modules that a command is made of in its --help, where absl has those of its own file."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if not module.startswith("experiments.") or (module == distributed.__name__ and not several):
            continue
        for flag in defined:
            if needs_workdir or flag is not flags.FLAGS["workdir"]:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _run(main: Callable[[list[str]], None]) -> None:
    _keep_memory()
    gpu.prepare()
    compilation_cache.enable()
    # Orbax and Grain log every step they take, at a level that absl shows by default.
    logging.set_verbosity(logging.WARNING)
    logging.set_stderrthreshold(logging.WARNING)
    wants_help = any(argument.startswith(("--help", "-help")) or argument == "-h" for argument in sys.argv[1:])

    def guarded(arguments: list[str]) -> None:
        with distributed.exit_all_on_error():
            try:
                progress.set_quiet(_QUIET.value)
                plugins.load(_TRUST_IMPORTS.value or (), None if _WORKDIR.value is None else Path(_WORKDIR.value))
                main(arguments[1:])
            except KeyboardInterrupt:
                to_stderr("interrupted")
                sys.exit(128 + signal.SIGINT)
            except (ValueError, OSError, ArithmeticError) as error:
                if _DEBUG.value:
                    raise
                to_stderr(f"error: {error}")
                sys.exit(2)
            except Exception as error:
                if not _DEBUG.value and (said := out_of_memory.explained(error)):
                    to_stderr(f"error: {said}")
                    sys.exit(2)
                # An error that nobody has foreseen keeps its traceback, and says how to report it.
                traceback.print_exc()
                to_stderr(
                    f"error: {type(error).__name__}: {error}. Either this is a bug, or input that should have been "
                    "refused: please report it with the lines above and the command"
                )
                sys.exit(1)

    started = time.monotonic()
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except SystemExit as end:
        # absl ends --help with 1.
        code = 0 if wants_help and end.code == 1 else end.code
        is_first = not jax.distributed.is_initialized() or jax.process_index() == 0
        if flags.FLAGS.is_parsed() and _NOTIFY.value is not None and is_first:
            _notify(_NOTIFY.value, code, time.monotonic() - started)
        sys.exit(code)


def _notify(given: str, code: str | int | None, seconds: float) -> None:
    """Runs the command of --notify. Its failure is a warning: the work is done."""
    told = {
        "LLM4REC_EXIT_CODE": str(code or 0),
        "LLM4REC_SECONDS": f"{seconds:.0f}",
        "LLM4REC_COMMAND": shlex.join([Path(sys.argv[0]).stem, *sys.argv[1:]]),
    }
    try:
        ended = subprocess.run(shlex.split(given), env={**os.environ, **told}, check=False).returncode
    except (OSError, ValueError) as error:
        ended = error
    if ended:
        to_stderr(f"warning: --notify={given}: {ended if isinstance(ended, Exception) else f'exit code {ended}'}")


def _parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; an error in a configuration or in a key of it ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        to_stderr("error: the working directory does not exist any more: cd to another")
        sys.exit(2)
    try:
        arguments = studies.resolve(arguments)
    except ValueError as error:
        to_stderr(f"error: {error}")
        sys.exit(2)
    try:
        if any(re.match(r"--?config\.[^=]+=\s*\{", argument) for argument in arguments):
            merged, notes = overrides.merge_tables(_before_overrides(arguments), arguments)
            arguments = [arguments[0], *merged[1:]]
            for note in notes:
                to_stderr(note)
        return flags.FLAGS(arguments)
    except flags.Error as error:
        to_stderr(f"error: {error}; --help lists the flags")
        sys.exit(2)
    except Exception as error:
        trace = traceback.extract_tb(error.__traceback__)
        if not isinstance(error, OSError) and "ml_collections" not in trace[-1].filename:
            # A configuration is a program: its author wants the traceback too.
            traceback.print_exc()
            to_stderr(f"error: --config: {type(error).__name__}: {error}")
        else:
            unknown = None
            if not isinstance(error, OSError):
                unknown = overrides.unknown_key(_before_overrides(arguments), arguments)
            to_stderr(f"error: {unknown or f'--config: {error}'}")
        sys.exit(2)


def _before_overrides(arguments: Sequence[str]) -> ConfigDict:
    """The configuration that --config names, as its file has it; an empty one for commands without such a flag."""
    given = re.search(r"(?:^|\n)--?config[=\n](.*)", "\n".join(arguments))
    if given is None or "config" not in flags.FLAGS or not is_config_flag(flags.FLAGS["config"]):
        return ConfigDict()
    return flags.FLAGS["config"].parser.parse(given[1]) or ConfigDict()


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
