"""Ids, their collisions, their files, and the trie of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.semantic_ids import SemanticIds, build_trie, collisions, load_index, save_index, with_extra_digit

RNG = np.random.default_rng(1)
IDS = SemanticIds(RNG.integers(0, (3, 4, 2), (40, 3)).astype(np.int32), (3, 4, 2))


def test_collisions_are_counted_and_resolved():
    counts = {}
    for row in map(tuple, IDS.codes.tolist()):
        counts[row] = counts.get(row, 0) + 1
    found = collisions(IDS)
    shared = [n for n in counts.values() if n > 1]
    assert found == (40, len(counts), sum(shared), max(shared))
    resolved = with_extra_digit(IDS)
    assert collisions(resolved)[1:] == (40, 0, 1)
    assert resolved.sizes == (3, 4, 2, max(shared))
    np.testing.assert_array_equal(resolved.codes[:, :3], IDS.codes)
    assert with_extra_digit(resolved) is resolved


def test_index_files_have_the_published_layout(tmp_path):
    path = tmp_path / "Tiny.index.json"
    save_index(path, SemanticIds(np.array([[183, 70], [0, 2]], np.int32), (256, 256)), ["x", "y"])
    assert json.loads(path.read_text()) == {"x": ["<a_183>", "<b_70>"], "y": ["<a_0>", "<b_2>"]}
    loaded = load_index(path, ["y", "x"])
    assert loaded.codes.tolist() == [[0, 2], [183, 70]]
    assert loaded.sizes == (184, 71)
    path.write_text('{"0": ["<a_5>"], "1": ["<a_3>"]}')
    assert load_index(path, ["2", "1"], shift=1).codes.tolist() == [[3], [5]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "must be an object"),
        ("{", "is not JSON"),
        ('{"a": ["<a_1>"]}', "no codes for 1 of 2 items, the first being 'b'"),
        ('{"a": ["<a_1>"], "b": ["<b_1>"]}', "item 'b' has the codes"),
        ('{"a": ["<a_1>"], "b": "12"}', "item 'b' has the codes"),
        ('{"a": ["<a_1>"], "b": ["<a_1>", "<b_0>"]}', "different numbers of codes"),
    ],
)
def test_damaged_index_files_are_named(tmp_path, content, said):
    path = tmp_path / "bad.index.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        load_index(path, ["a", "b"])


def test_codes_outside_of_their_level_are_named():
    with pytest.raises(ValueError, match="item 1 has code 2 at level 0, must be 0 to 1"):
        SemanticIds(np.array([[0], [2]], np.int32), (2,))


@pytest.mark.parametrize("dense_elements", [0, 12, 2**20])
def test_the_trie_holds_exactly_the_ids(dense_elements):
    trie = build_trie(IDS, dense_elements)
    assert [level.dense is None for level in trie.levels] == [
        n > dense_elements for n in (3, 12, 2 * trie.num_nodes[1])
    ]
    paths = {(): 0}
    for level in trie.levels:
        deeper = {}
        for path, node in paths.items():
            for code, child in zip(*map(np.ravel, level.children(jnp.array([node]))), strict=True):
                if child >= 0:
                    deeper[(*path, int(code))] = int(child)
        paths = deeper
    assert paths == {tuple(row): leaf for row, leaf in zip(IDS.codes.tolist(), trie.node_of_item[-1], strict=True)}
    assert trie.num_nodes[-1] == len(paths)
    for level in trie.levels:
        assert (np.asarray(level.children(jnp.array([-1]))[1]) == -1).all()
