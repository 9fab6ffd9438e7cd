"""Atomic writes: a file, a folder or a link is there whole, or not at all."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


class NotWritten(OSError):
    """A file that could not be written. The message names it, gives the reason and the remedy."""


def not_written(path: Path, error: Exception) -> NotWritten:
    """Returns the error to raise for a path whose writing ended in `error`, of this or of another library."""
    parents = [folder for folder in path.absolute().parents if folder.is_dir()]
    gone = f"; {path.parent} is not there any more" if parents[0] != path.absolute().parent else ""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error).strip().splitlines()[0]
    # numpy says how many items it got rid of, and not why.
    if re.fullmatch(r"\d+ requested and \d+ written", reason):
        reason = os.strerror(errno.ENOSPC)
    # TensorStore tells its whole way there.
    if code := re.search(r"os_error_code='(\d+)'", reason):
        reason = os.strerror(int(code[1]))
    reason = reason.partition(" [tensorstore_spec")[0]
    return NotWritten(
        f"cannot write {path} ({reason}{gone}): make room, bring the folder back or make it writable; what was saved "
        "before is whole, and the same command goes on from there"
    )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager that turns an OSError raised within it into NotWritten, which names the path."""
    try:
        yield
    except NotWritten:
        raise
    except OSError as error:
        raise not_written(path, error) from error


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Context manager yielding a scratch path, which takes the place of `path` when the block ends without an error.

    The scratch path has the same name, in a hidden folder of its own beside `path`; what is made there may be a file, a
    link, or a folder (where `path` is not there yet, or is an empty folder). After an error, nothing of it is left.
    Two processes, or two containers with the same process ids, never share one.

    Args:
      path: File or folder to write; its parent exists.
      durable: force a file to the disk before it is renamed, so that it is whole after a power failure too. Costs
        milliseconds.

    Raises:
      NotWritten: an OSError within the block, or of the rename.

    Example:
      >>> folder = Path(getfixture("tmp_path"))
      >>> with replacing(folder / "a.txt") as scratch:
      ...     _ = scratch.write_text("whole")
      >>> [(file.name, file.read_text()) for file in folder.iterdir()]
      [('a.txt', 'whole')]
    """
    with writing(path):
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp"))
        try:
            scratch = folder / path.name
            yield scratch
            if durable and scratch.is_file() and not scratch.is_symlink():
                _sync(scratch)
            os.replace(scratch, path)
            if durable:
                _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, complete and on the disk, or not at all.

    Raises:
      NotWritten: the disk is full or read-only, or the folder is gone.

    Example:
      >>> file = Path(getfixture("tmp_path")) / "a.bin"
      >>> write_bytes(file, b"abc")
      >>> file.read_bytes()
      b'abc'
    """
    with replacing(path) as scratch:
        scratch.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def _sync(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
