"""Compiled programs kept on disk, so that a command that is run again does not compile its programs again."""

import hashlib
import os
import platform
import sys
from pathlib import Path

import filelock
import jax
import jax._src.compilation_cache
from jax._src.lru_cache import LRUCache

from llm4rec_jax.data import cache

# Programs of a step have some megabytes each; the least recently used go first.
MOST_BYTES = 2**31


class SealedCache(LRUCache):
    """jax's cache, whose entries end in a SHA-256 over their key and content.

    A program under another one's key would run in its place. An entry that is damaged or misplaced is compiled again.
    """

    def get(self, key: str) -> bytes | None:
        entry = super().get(key)
        if entry is None or entry[-32:] == _seal(key, entry[:-32]):
            return entry and entry[:-32]
        with self.lock:
            (self.path / f"{key}-cache").unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        super().put(key, value + _seal(key, value))


def _seal(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


def enable() -> None:
    """Lets jax keep programs in llm4rec_jax/compiled of $XDG_CACHE_HOME or ~/.cache.

    JAX_COMPILATION_CACHE_DIR takes its place, with jax's own settings, and JAX_ENABLE_COMPILATION_CACHE=false turns it
    off. A folder that cannot be written is done without.
    """
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None or not settings["jax_enable_compilation_cache"]:
        return
    folder = cache.default_folder("compiled") / _machine()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(place.stat().st_uid not in (0, os.getuid()) for place in (folder, *folder.parents[:3])):
            # Programs are code; a folder for temporary files is open to everybody.
            raise PermissionError("it belongs to another user")
        _drop_unfinished(folder)
    except (OSError, filelock.Timeout) as error:
        print(f"warning: compiled programs are not kept: cannot write {folder} ({error})", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # jax has no other way to choose the cache.
    jax._src.compilation_cache.LRUCache = SealedCache  # pyright: ignore[reportPrivateImportUsage]
    # With a size there is a lock, too: others never read what is half written.
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # By default what compiles within a second is compiled every time, and a run has a hundred such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _drop_unfinished(folder: Path) -> None:
    """Removes what a killed process has half written: an entry gets its time, KEY-atime, when it is whole."""
    with filelock.FileLock(folder / ".lockfile", timeout=10):
        for entry in folder.glob("*-cache"):
            if not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists():
                entry.unlink()


def _machine() -> str:
    """Names this kind of processor: a home folder may be shared by machines that cannot run each other's programs."""
    about = [platform.machine(), platform.processor()]
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        first = cpus.read_text().partition("\n\n")[0].splitlines()
        about += [line for line in first if line.startswith(("model", "vendor", "flags", "Features", "CPU "))]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
