"""Sizes of what a device is given at a time, by its kind."""

from jax.sharding import Mesh


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def rows_of_a_tile(mesh: Mesh, tokens: int = 12) -> int:
    """As many as a CPU's cache takes, in each lane; other devices would idle with so few.

    Args:
      tokens: of a row that is a text.
    """
    return max(384 // tokens // 8, 1) * 8 if _on_cpu(mesh) else 512


def lanes(mesh: Mesh) -> int:
    """Programs that a device works on at a time: at the seams of one, where work is handed out, a CPU's cores idle.

    Of several devices of a CPU each has a program of its own anyway.
    """
    return 2 if _on_cpu(mesh) and mesh.size == 1 else 1


def group_cost(mesh: Mesh) -> int:
    """Padding, in tokens, that one more group of texts in a training step has to save to be worth its compilation.

    A GPU passes over thousands of tokens in a millisecond, and takes seconds to compile a group.
    """
    return 512 if _on_cpu(mesh) else 4096
