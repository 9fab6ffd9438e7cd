"""Commands run by several processes, joined over loopback."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.helpers.commands import ROOT


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Joined:
    """A command run by `processes` processes of `devices` devices each, with their output in files.

    `more` has arguments of single processes; `script` is run in place of a command.
    """

    def __init__(
        self,
        logs: Path,
        name: str,
        *arguments: object,
        processes: int = 2,
        devices: int = 2,
        more: Mapping[int, Sequence[str]] = {},
        script: str | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        join = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={processes}", "--heartbeat=10"]
        self._logs = [(logs / f"{kind}{i}.txt") for i in range(processes) for kind in ("out", "err")]
        self.running = []
        for i in range(processes):
            with (logs / f"out{i}.txt").open("w") as out, (logs / f"err{i}.txt").open("w") as err:
                what = ("-m", f"experiments.{name}") if script is None else ("-c", script)
                command = [sys.executable, *what, *map(str, arguments), *more.get(i, ()), *join, f"--process={i}"]
                self.running.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err, text=True)
                )

    def wait(self) -> list[int]:
        """The exit codes."""
        return [process.wait(300) for process in self.running]

    def said(self, process: int = 0, where: str = "out") -> str:
        return next(log for log in self._logs if log.name == f"{where}{process}.txt").read_text()

    def finish(self) -> None:
        codes = self.wait()
        assert not any(codes), "\n".join(log.read_text() for log in self._logs)
