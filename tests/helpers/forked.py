"""Commands in forks of one process that has imported what all of them import, which takes longer than most of them.

`python -m tests.helpers.forked` is that process: it reads requests, a line of JSON each, and answers with exit codes.
"""

import atexit
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

# They start no thread, which a fork would lose. The commands' own modules define flags and are left to each command.
SHARED = (
    "grain",
    "jax",
    "llm4rec_jax.runs.run",
    "orbax.checkpoint",
    "scipy.stats",
    "transformers.models.auto.tokenization_auto",
)
# Not read by the imports, so a fork may have its own.
LATE = ("PYTEST_CURRENT_TEST", "XLA_FLAGS")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LATE}


def can_run(environment: dict[str, str]) -> bool:
    """Returns whether the imports would have read the same environment."""
    return {name: value for name, value in environment.items() if name not in LATE} == ENVIRONMENT


def run(module: str, arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Does what `subprocess.run([sys.executable, "-m", module, *arguments])` does, with its output as text."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / "stdout", Path(folder) / "stderr"]
        late = {name: environment[name] for name in LATE if name in environment}
        server = _server()
        assert server.stdin
        assert server.stdout
        print(json.dumps([module, arguments, late, list(map(str, streams))]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess([module, *arguments], code, *(path.read_text("utf-8") for path in streams))


@cache
def _server() -> subprocess.Popen[str]:
    started = subprocess.Popen(
        [sys.executable, "-m", __name__], env=ENVIRONMENT, cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    atexit.register(started.communicate)
    return started


def _serve() -> None:
    for module in SHARED:
        importlib.import_module(module)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            _become(*json.loads(line))
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(module: str, arguments: list[str], late: dict[str, str], streams: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for own, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), own)
    os.environ.update(late)
    sys.argv[1:] = arguments
    runpy._run_module_as_main(module)


if __name__ == "__main__":
    _serve()
