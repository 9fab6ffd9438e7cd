"""Embeddings of triples: scores, filtered ranks and training, beside transcriptions in numpy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.sources.knowledge_graph import KnowledgeGraph
from llm4rec_jax.evaluation.links import filtered_ranks, link_metrics
from llm4rec_jax.models.graphs.triples import TRIPLE_MODELS
from llm4rec_jax.tasks.triples import TripleTask, item_vectors, split_triples
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.loop import train
from tests.helpers.commands import command, last_line

RNG = np.random.default_rng(0)
E, R, D = 12, 3, 6
TRIPLES = np.unique(np.stack([RNG.integers(0, n, 60) for n in (E, R, E)], axis=1), axis=0).astype(np.int32)


def transcribed(name, entity, relation, h, r, t):
    """The score of one triple, as the paper has it."""
    if name == "transe":
        return -np.linalg.norm(entity[h] + relation[r] - entity[t])
    a, b, c = (v[: D // 2] + 1j * v[D // 2 :] for v in (entity[h], relation[r], entity[t]))
    return (a * b * np.conj(c)).sum().real


@pytest.mark.parametrize("name", ["transe", "complex"])
def test_scores_and_filtered_ranks_are_their_transcription(name):
    model = TRIPLE_MODELS.build(name, num_entities=E, num_relations=R, width=D)
    params = model.init(jax.random.key(0), jnp.asarray(TRIPLES[:1]))
    entity, relation = (np.asarray(params["params"][part], np.float64) for part in ("entity", "relation"))
    known = {tuple(triple) for triple in TRIPLES.tolist()}
    want = np.zeros((2, 10), int)
    for n, (h, r, t) in enumerate(TRIPLES[:10].tolist()):
        right = transcribed(name, entity, relation, h, r, t)
        for side in (0, 1):
            others = [(h, r, e) if side == 0 else (e, r, t) for e in range(E)]
            others = [triple for triple in others if triple not in known]
            want[side, n] = 1 + sum(transcribed(name, entity, relation, *triple) >= right for triple in others)
    score = jax.jit(lambda triples: model.apply(params, triples))
    tails, heads = score(TRIPLES)
    for row, (h, r, t) in enumerate(TRIPLES[:5].tolist()):
        for e in range(E):
            assert tails[row, e] == pytest.approx(transcribed(name, entity, relation, h, r, e), abs=1e-4)
            assert heads[row, e] == pytest.approx(transcribed(name, entity, relation, e, r, t), abs=1e-4)
    ranks = filtered_ranks(score, TRIPLES[:10], TRIPLES, batch=4)
    np.testing.assert_array_equal(ranks, want)
    metrics = link_metrics(ranks)
    assert metrics["mrr"] == pytest.approx(np.mean(1 / want))
    assert metrics["hits@3"] == pytest.approx(np.mean(want <= 3))


def family(size: int = 40) -> KnowledgeGraph:
    """Entity e has the relations "next" to e + 1 and "over next" to e + 2."""
    rows = [(e, step - 1, e + step) for step in (1, 2) for e in range(size - step)]
    names = [f"e{e:02}" for e in range(size)]
    return KnowledgeGraph(names, ["next", "over next"], np.array(rows, np.int32), {"i3": 3, "i5": 5})


@pytest.mark.parametrize("name", [pytest.param("transe", marks=pytest.mark.long), "complex"])
def test_the_loop_learns_what_completes_a_triple(name, tmp_path):
    graph = family()
    split = split_triples(graph, 4)
    assert len({tuple(row) for part in split for row in part.tolist()}) == len(graph.triples) == 77
    model = TRIPLE_MODELS.build(name, num_entities=40, num_relations=2, width=16)
    config = TrainConfig(
        steps=300, batch_size=36, learning_rate=0.03, metric="mrr", eval_every=300, log_every=300, checkpoint_every=300
    )
    task = TripleTask(model, split, config)
    trained = train(task, config, tmp_path)
    assert task.evaluate_part(trained.trainable, "train")["mrr"] > 0.7
    vectors = item_vectors(graph, trained.trainable)
    assert vectors["ids"].tolist() == ["i3", "i5"]
    np.testing.assert_array_equal(vectors["vectors"], trained.trainable["params"]["graph"]["entity"][np.array([3, 5])])


def test_what_cannot_be_held_out_or_halved():
    with pytest.raises(ValueError, match="held_out is 50, must be between 1 and 19"):
        split_triples(family(), 50)
    with pytest.raises(ValueError, match="width is 5"):
        TRIPLE_MODELS.build("complex", num_entities=4, num_relations=1, width=5).init(jax.random.key(0), TRIPLES[:1])


@pytest.mark.long
def test_the_command_writes_vectors_of_items(tmp_path):
    lines = "".join(f"e{e},next,e{(e + 1) % 40}\ne{e},over,e{(e + 2) % 40}\n" for e in range(40))
    (tmp_path / "t.csv").write_text("head,relation,tail\n" + lines)
    out = tmp_path / "graph.npz"
    done = command(
        "graph", f"--triples={tmp_path / 't.csv'}", f"--workdir={tmp_path / 'run'}", f"--out={out}", "--model=transe",
        "--width=8", "--steps=10", "--batch_size=16", "--held_out=4",
    )  # fmt: skip
    assert last_line(done)["items"] == 40
    assert json.dumps(last_line(done)["test"]).count("hits") == 3
    with np.load(out) as made:
        assert made["vectors"].shape == (40, 8)
