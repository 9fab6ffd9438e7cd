"""Commands keep their compiled programs, and mend what a killed one has left."""

import subprocess
import sys

from experiments.cli.compilation_cache import SealedCache
from tests.helpers.commands import ROOT
from tests.helpers.compiling import environment

PROGRAM = """
import jax
from experiments.cli import compilation_cache
compilation_cache.enable()
print(jax.jit(lambda x: x * 2 + 1)(3.0), jax.config.jax_compilation_cache_dir)
"""


def compute(**changed: str | None) -> subprocess.CompletedProcess[str]:
    asked = environment() | changed
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
        env={name: value for name, value in asked.items() if value is not None},
    )  # fmt: skip
    assert done.stdout.startswith("7.0 ")
    return done


def test_programs_are_kept_and_what_is_half_written_is_made_again(tmp_path):
    ours = {"JAX_COMPILATION_CACHE_DIR": None, "XDG_CACHE_HOME": str(tmp_path)}
    assert compute(**ours).stderr == ""
    (folder,) = (tmp_path / "llm4rec_jax" / "compiled").iterdir()
    entries = {path: path.read_bytes() for path in folder.glob("*-cache")}
    assert entries
    # As a process leaves one that is killed while it writes.
    torn = next(iter(entries))
    torn.write_bytes(entries[torn][:10])
    torn.with_name(torn.name.removesuffix("-cache") + "-atime").unlink()
    done = compute(**ours)
    assert done.stderr == ""
    assert len(torn.read_bytes()) > 10
    assert compute(**ours, JAX_ENABLE_COMPILATION_CACHE="false").stdout == "7.0 None\n"


def test_a_folder_of_ones_own_takes_its_place_and_one_that_cannot_be_written_is_done_without(tmp_path):
    own = str(tmp_path / "own")
    assert compute(JAX_COMPILATION_CACHE_DIR=own, XDG_CACHE_HOME=str(tmp_path)).stdout == f"7.0 {own}\n"
    assert not (tmp_path / "llm4rec_jax").exists()
    (tmp_path / "file").touch()
    done = compute(JAX_COMPILATION_CACHE_DIR=None, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert done.stdout == "7.0 None\n"
    assert "warning: compiled programs are not kept: cannot write" in done.stderr


def test_a_program_under_another_one_s_key_is_compiled_again(tmp_path):
    """Two entries that have changed places: each is a whole program, and would run in place of the other."""
    cache = SealedCache(str(tmp_path), max_size=2**20)
    cache.put("a", b"program a")
    cache.put("b", b"program b")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"program a", b"program b", None)
    one, other = tmp_path / "a-cache", tmp_path / "b-cache"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content[:-1])
    assert cache.get("a") is cache.get("b") is None
    cache.put("a", b"program a")
    assert cache.get("a") == b"program a"


def test_commands_keep_their_programs_in_such_a_cache(tmp_path):
    compute(JAX_COMPILATION_CACHE_DIR=None, XDG_CACHE_HOME=str(tmp_path))
    (entry,) = (tmp_path / "llm4rec_jax" / "compiled").glob("*/*-cache")
    cache = SealedCache(str(entry.parent), max_size=2**30)
    assert cache.get(entry.name.removesuffix("-cache")) is not None
