"""Sizes of the work that a device is given at a time, by its kind."""

from jax.sharding import Mesh


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def rows_per_batch(mesh: Mesh, tokens: int = 12) -> int:
    """Returns the number of rows of a fixed batch: few enough for a CPU's cache, many enough to fill other devices.

    Args:
      mesh: The devices.
      tokens: Tokens a row, when rows are texts.
    """
    return max(384 // tokens // 8, 1) * 8 if _on_cpu(mesh) else 512


def even_rows(mesh: Mesh, count: int, tokens: int) -> int:
    """Returns the number of rows of a batch of texts, at most `rows_per_batch`, that makes all batches equally full.

    Args:
      mesh: The devices.
      count: Number of all rows.
      tokens: Tokens a row.
    """
    side_by_side = mesh.size * num_streams(mesh)
    batches = -(-count // (rows_per_batch(mesh, tokens) * side_by_side))
    return max(-(-count // (batches * side_by_side)), 1)


def num_streams(mesh: Mesh) -> int:
    """Returns the number of programs that a device runs side by side.

    Between two operations of one program, when work is handed out, a CPU's cores idle; a second program fills the gap.
    When a CPU acts as several devices, each has a program of its own anyway.
    """
    return 2 if _on_cpu(mesh) and mesh.size == 1 else 1


def group_cost(mesh: Mesh) -> int:
    """Returns the padding, in tokens, that one more group of texts in a training step must save to pay for itself.

    A GPU passes over thousands of tokens in a millisecond, and takes seconds to compile a group.
    """
    return 512 if _on_cpu(mesh) else 4096
