"""Memory of a machine, and the choice of a program that fits it."""

import resource
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from llm4rec_jax.sharding import make_mesh
from llm4rec_jax.training import memory
from llm4rec_jax.training.memory import device_bytes, fitting_program, host_bytes, program_bytes

GIB = 2**30
TEXTS = [(1000, 48), (3000, 16)]  # as many tokens as 2,000 texts of 48


class Linear:
    """Compiles programs whose memory is linear in the texts that they encode at a time."""

    def __init__(self, rest: float, text: float, arguments: float = 0.5) -> None:
        self._rest, self._text, self._arguments = rest, text, arguments
        self.compiled: list[int] = []

    def __call__(self, item_micro_batch: int):
        self.compiled.append(item_micro_batch)
        temporary = int((self._rest + self._text * min(item_micro_batch or 2000, 2000)) * GIB)
        sizes = SimpleNamespace(
            argument_size_in_bytes=int(self._arguments * GIB),
            output_size_in_bytes=GIB // 4,
            alias_size_in_bytes=GIB // 4,
            temp_size_in_bytes=temporary,
        )
        return SimpleNamespace(memory_analysis=lambda: sizes)


def test_all_at_once_where_that_fits():
    programs = Linear(rest=1, text=0.01)
    fitting = fitting_program(programs, TEXTS, 22 * GIB)
    assert (fitting.item_micro_batch, fitting.note, programs.compiled) == (0, "", [0])


@pytest.mark.parametrize(("limit", "chosen", "tries"), [(16, 1024, 2), (8, 512, 2), (2, 32, 3)])
def test_the_largest_micro_batch_that_fits(limit, chosen, tries):
    programs = Linear(rest=1, text=0.01)
    fitting = fitting_program(programs, TEXTS, limit * GIB)
    assert fitting.item_micro_batch == chosen
    assert len(programs.compiled) == tries
    assert program_bytes(fitting.program).total <= limit * GIB
    assert "21.5 GiB with all at once" in fitting.note
    # Twice as large would not fit, or hardly.
    assert program_bytes(programs(2 * chosen)).total > 0.85 * limit * GIB


@pytest.mark.parametrize(
    ("rest", "arguments", "given", "texts", "remedy"),
    [
        (20, 0.5, None, TEXTS, "config.train.micro_batches"),
        (1, 10, None, TEXTS, "config.mesh.fsdp=True"),
        (1, 0.5, 0, TEXTS, "give config.train.item_micro_batch=auto$"),
        (1, 0.5, 1500, TEXTS, "config.train.item_micro_batch=auto, or less than 1500"),
        (1, 0.5, None, [], "config.train.micro_batches"),
    ],
)
def test_what_cannot_fit_is_refused(rest, arguments, given, texts, remedy):
    programs = Linear(rest, 0.01, arguments)
    with pytest.raises(ValueError, match=remedy) as refused:
        fitting_program(programs, texts, 8 * GIB, given)
    assert f"{arguments:.1f} GiB of them" in str(refused.value)
    assert len(programs.compiled) <= 4


def test_a_given_size_is_kept():
    programs = Linear(rest=1, text=0.01)
    assert fitting_program(programs, TEXTS, 8 * GIB, 64).item_micro_batch == 64
    assert programs.compiled == [64]


def test_the_figures_are_the_compilers():
    program = jax.jit(lambda x: x @ x).lower(np.ones((256, 256), np.float32)).compile()
    found = program_bytes(program)
    assert found.arguments == 256 * 256 * 4
    assert found.total >= 2 * found.arguments


def test_the_least_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, limit in (("", "max"), ("a", str(9 * GIB)), ("a/b", "max")):
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
    own = tmp_path / "proc/self/cgroup"
    own.parent.mkdir(parents=True)
    pages = 64 * GIB // memory.os.sysconf("SC_PAGE_SIZE")
    real = memory.os.sysconf
    monkeypatch.setattr(memory.os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else real(name))
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert host_bytes(tmp_path) == 64 * GIB - memory._RESIDENT
    own.write_text("0::/a/b\n")
    assert host_bytes(tmp_path) == 9 * GIB - memory._RESIDENT
    version_1 = tmp_path / "sys/fs/cgroup/memory/c"
    version_1.mkdir(parents=True)
    (version_1 / "memory.limit_in_bytes").write_text(f"{7 * GIB}\n")
    own.write_text("5:cpu,cpuacct:/c\n4:memory:/c\n")
    assert host_bytes(tmp_path) == 7 * GIB - memory._RESIDENT
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (6 * GIB, resource.RLIM_INFINITY))
    assert host_bytes(tmp_path) == 6 * GIB - memory._ADDRESSES


def test_devices_of_a_host_share_its_memory():
    one, eight = (device_bytes(make_mesh(devices=jax.devices()[:n])) for n in (1, 8))
    assert one == host_bytes()
    assert eight == one // 8
