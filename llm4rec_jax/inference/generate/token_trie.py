"""A trie of texts, laid out so that a decoder reads each of its tokens once, a chunk of tokens at a time.

Tokens that have others after them are nodes, in depth-first order. A node sees its ancestors; those in earlier chunks
are all on the path to the first node of its chunk, so only that path is carried from chunk to chunk. Four texts, of
which a, b, e are nodes, in chunks of two nodes:

    a b c     root ─ a ─ b ─ c        chunk 0: a, b     carries the path a to chunk 1
    a b d              │   └ d        chunk 1: e        sees the path a
    a e f              └ e ─ f
    g         root ─ g

The last token of a text is predicted and never read. Each token is an edge of the trie, with one log-probability.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TokenTrie(NamedTuple):
    """A trie of T texts in C chunks of M nodes, with paths of up to P nodes.

    Edges are numbered: E of each chunk, chunk by chunk, then the R edges of the root, then one for padding.

    Attributes:
      tokens: [C, M] tokens of the nodes.
      sees: [C, M, P + M] bool, the nodes of the path and of the chunk that each node sees, itself included.
      carry: [C, P] places among the P + M that the next path takes; -1 for none.
      parents: [C, E] places in the chunk that an edge starts from.
      edges: [C, E] tokens of the edges.
      first: [R] tokens of the edges of the root.
      texts: [T, D] numbers of the edges of each text.
      lengths: [T] number of tokens of each text.
    """

    tokens: np.ndarray
    sees: np.ndarray
    carry: np.ndarray
    parents: np.ndarray
    edges: np.ndarray
    first: np.ndarray
    texts: np.ndarray
    lengths: np.ndarray


class TrieShape(NamedTuple):
    """Sizes that tries are padded to: chunks, nodes of a chunk, path, edges of a chunk and of the root, tokens."""

    chunks: int
    nodes: int
    path: int
    edges: int
    first: int
    tokens: int

    def union(self, other: "TrieShape") -> "TrieShape":
        """Returns the shape that holds what either holds."""
        return TrieShape(*(max(pair) for pair in zip(self, other, strict=True)))


class _Node(NamedTuple):
    """A node: its token, the nodes from the root to its parent, and its number."""

    token: int
    ancestors: tuple[int, ...]


class _Edges(NamedTuple):
    """Nodes in depth-first order, edges as (parent or -1, token), and the edges of each text."""

    nodes: list[_Node]
    edges: list[tuple[int, int]]
    texts: list[list[int]]


def build_trie(texts: Sequence[Sequence[int]], chunk: int) -> TokenTrie:
    """Builds the trie of texts.

    Args:
      texts: Tokens of T texts, none of them empty; several may be equal.
      chunk: Number of nodes M that are read at a time.

    Raises:
      ValueError: A text is empty.

    Example:
      >>> trie = build_trie([[1, 2, 3], [1, 2, 4], [1, 5, 6], [7]], chunk=2)
      >>> trie.tokens.tolist(), trie.first.tolist(), trie.lengths.tolist()
      ([[1, 2], [5, 0]], [1, 7], [3, 3, 3, 1])
    """
    walked = _walk(texts)
    return _lay(walked, _shape(walked, chunk))


def build_tries(groups: Sequence[Sequence[Sequence[int]]], chunk: int) -> TokenTrie:
    """Builds a trie for each of n groups of T texts, in one shape: every array has n in front; see `build_trie`."""
    walked = [_walk(texts) for texts in groups]
    shape = TrieShape(0, 0, 0, 0, 0, 0)
    for one in walked:
        shape = shape.union(_shape(one, chunk))
    # Few sizes, so that few programs are compiled.
    shape = TrieShape(*(n if name == "nodes" else _power(n) for name, n in shape._asdict().items()))
    tries = [_lay(one, shape) for one in walked]
    return TokenTrie(*(np.stack(arrays) for arrays in zip(*tries, strict=True)))


def _power(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _walk(texts: Sequence[Sequence[int]]) -> _Edges:
    if not all(len(text) for text in texts):
        raise ValueError("a text has no tokens, so that it cannot be scored: give each text some")
    order = sorted(range(len(texts)), key=lambda i: tuple(texts[i]))
    nodes: list[_Node] = []
    edges: dict[tuple[int, int], int] = {}
    number: dict[tuple[int, int], int] = {}
    of_text: list[list[int]] = [[] for _ in texts]
    for i in order:
        parent, ancestors = -1, ()
        for place, token in enumerate(texts[i]):
            edge = parent, token
            of_text[i].append(edges.setdefault(edge, len(edges)))
            if place + 1 < len(texts[i]):
                if edge not in number:
                    number[edge] = len(nodes)
                    nodes.append(_Node(token, ancestors))
                parent = number[edge]
                ancestors = (*ancestors, parent)
    return _Edges(nodes, list(edges), of_text)


def _shape(walked: _Edges, chunk: int) -> TrieShape:
    parents = np.array([parent for parent, _ in walked.edges])
    chunks = max(-(-len(walked.nodes) // chunk), 1)
    of_chunk = np.bincount(parents[parents >= 0] // chunk, minlength=1)
    return TrieShape(
        chunks=chunks,
        nodes=chunk,
        path=max((len(node.ancestors) for node in walked.nodes), default=0),
        edges=max(int(of_chunk.max()), 1),
        first=int((parents < 0).sum()),
        tokens=max(map(len, walked.texts)),
    )


def _lay(walked: _Edges, shape: TrieShape) -> TokenTrie:
    chunks, size, path = shape.chunks, shape.nodes, shape.path
    tokens = np.zeros((chunks, size), np.int32)
    sees = np.zeros((chunks, size, path + size), bool)
    # Padding sees itself: a softmax over nothing is not a number.
    sees[:, np.arange(size), path + np.arange(size)] = True
    carry = np.full((chunks, path), -1, np.int32)
    carried: tuple[int, ...] = ()
    for number, node in enumerate(walked.nodes):
        chunk, place = divmod(number, size)
        if place == 0 and chunk:
            begin = (chunk - 1) * size
            where = [path + a - begin if a >= begin else carried.index(a) for a in node.ancestors]
            carry[chunk - 1, : len(where)] = where
            carried = node.ancestors
        tokens[chunk, place] = node.token
        for ancestor in node.ancestors:
            inside = ancestor >= chunk * size
            sees[chunk, place, path + ancestor - chunk * size if inside else carried.index(ancestor)] = True
    parents, edges = (np.zeros((chunks, shape.edges), np.int32) for _ in range(2))
    first, filled = np.zeros(shape.first, np.int32), np.zeros(chunks + 1, int)
    number = np.zeros(len(walked.edges), np.int32)
    for i, (parent, token) in enumerate(walked.edges):
        chunk = parent // size if parent >= 0 else chunks
        place = filled[chunk]
        filled[chunk] += 1
        number[i] = chunk * shape.edges + place
        if parent >= 0:
            parents[chunk, place], edges[chunk, place] = parent % size, token
        else:
            first[place] = token
    table = np.full((len(walked.texts), shape.tokens), chunks * shape.edges + shape.first, np.int32)
    for row, of_text in zip(table, walked.texts, strict=True):
        row[: len(of_text)] = number[of_text]
    return TokenTrie(tokens, sees, carry, parents, edges, first, table, np.array([len(t) for t in walked.texts]))
