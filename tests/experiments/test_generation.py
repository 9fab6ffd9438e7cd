"""Semantic ids from a language model's vectors, and runs that generate them, from commands and configurations."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import generation_beauty
from experiments.reports.spec import checked
from experiments.sweeps.trials import load as load_study
from llm4rec_jax.evaluation.evaluate import check_order
from llm4rec_jax.models.generators import GENERATORS
from llm4rec_jax.runs import folder
from llm4rec_jax.runs.generation_assembly import GenerationAssembly
from llm4rec_jax.runs.load import evaluate_again, load
from llm4rec_jax.runs.run import assemble, run
from llm4rec_jax.semantic_ids import SemanticIds, collisions, load_index, save_index
from tests.helpers.commands import command, last_line


def test_ids_are_made_from_the_vectors_of_a_language_model(config, tmp_path):
    vectors = tmp_path / "items.npy"
    command("encode", f"--config={config}:frozen", f"--out={vectors}")
    items = json.loads((tmp_path / "items.ids.json").read_text())
    assert np.load(vectors).shape == (40, 16)
    arguments = (f"--vectors={vectors}", "--levels=2", "--codes=5")
    done = command("semantic_ids", *arguments, f"--out={tmp_path / 'tiny.index.json'}")
    ids, result = load_index(tmp_path / "tiny.index.json", items), last_line(done)
    assert result["items"] == collisions(ids).ids == 40
    assert result["ids"] == len(np.unique(ids.codes[:, :2], axis=0)) < 40
    assert result["sizes"] == [5, 5, result["largest"]]
    assert 1 > result["variance_left"][0] > result["variance_left"][1]
    refused = command(
        "semantic_ids", *arguments, "--option=balanced=maybe", f"--out={tmp_path / 'x.index.json'}", check=False
    )
    assert refused.returncode == 2
    assert "--option=balanced=maybe is not NAME=VALUE" in refused.stderr


@pytest.fixture(scope="module")
def study(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour and thing are the two codes of an item; in the tiny dataset the next item is determined by the last."""
    folder = tmp_path_factory.mktemp("generation")
    codes = np.array([[colour, thing] for colour in range(4) for thing in range(10)], np.int32)
    save_index(folder / "tiny.index.json", SemanticIds(codes, (4, 10)), [f"i{i}" for i in range(40)])
    text = config.read_text().replace(
        "    return config",
        f"""        config.generation.ids = {str(folder / "tiny.index.json")!r}
        config.generation.options = ConfigDict(dict(width=32, layers=1, heads=2, head_width=16, ffn=64))
        config.generation.beams, config.generation.model = 10, arg
        config.train.update(dict(steps=200, batch_size=32, learning_rate=5e-3, eval_every=200, checkpoint_every=200))
        config.train.history = 6  # no longer in the test than in training
    return config""",
    )
    text = text.replace("get_config(arg)", 'get_config("id")')
    (folder / "study.py").write_text(text)
    return folder / "study.py"


@pytest.mark.parametrize(
    "model", [name if name == "tiger" else pytest.param(name, marks=pytest.mark.long) for name in sorted(GENERATORS)]
)
def test_a_generator_learns_what_comes_next(study, model, tmp_path):
    config = load_study(str(study)).get_config(model)
    result = run(config, tmp_path)
    assert result["test"]["users"] == 48
    assert result["test"]["hr@5"] > 0.95
    assert result["test"]["ndcg@5"] > 0.9
    assert evaluate_again(tmp_path)["test"] == result["test"]
    loaded = load(tmp_path)
    history = [f"i{i}" for i in range(10, 16)]  # green things, the sixth was the last
    items = loaded.recommend(history=history, k=40)
    assert items[0].item_id == "i16"
    assert len(items) == 34
    assert not {item.item_id for item in items} & set(history)
    scores = loaded.score([item.item_id for item in items], history=history)
    np.testing.assert_allclose(scores, [item.score for item in items], rtol=1e-4, atol=1e-5)
    assert (np.diff(scores) <= 1e-5).all()
    for name in ("encode", "export"):
        refused = command(name, f"--workdir={tmp_path}", f"--out={tmp_path / 'x.npy'}", check=False)
        assert refused.returncode == 2
        assert {"encode": "has no vectors of items", "export": "nothing to export"}[name] in refused.stderr


def test_items_of_one_id_tie_and_are_told(study, tmp_path):
    """With the colour alone as an id, ten items share each: a target ties with those of its colour that are left."""
    path = tmp_path / "colours.index.json"
    save_index(
        path, SemanticIds(np.repeat(np.arange(4, dtype=np.int32), 10)[:, None], (4,)), [f"i{i}" for i in range(40)]
    )
    config = load_study(str(study)).get_config("tiger")
    config.generation.ids, config.generation.resolve, config.train.steps = str(path), False, 100
    config.train.eval_every = 100
    log: list[str] = []
    result = run(config, tmp_path / "run", log.append)
    assert "4 ids of 40 items; 40 items share one, at most 10, scored alike" in log[0]
    # Eight of ten are known when the ninth is tested: it ties with the tenth, and so is second.
    assert result["test"]["hr@5"] == 1.0
    assert result["test"]["mrr"] == pytest.approx(0.5)
    assert folder.read(tmp_path / "run" / "dataset.json")["collisions"]["largest"] == 10


def test_beams_decide_ranks_and_misses_are_last(study, tmp_path):
    """Ranks of the search against scores of every item."""
    config = load_study(str(study)).get_config("tiger")
    assembly = assemble(config)
    ranker = assembly.scorer.of(assembly.params())
    history, targets = assembly.split.history("test"), assembly.split.targets_of("test")
    everything = np.ones(40, bool)
    for beams in (3, 40):
        assembly.scorer.beams = beams
        ranking = ranker.rank(history, history=history, targets=targets, candidates=everything, top=5)
        ranks, missed = ranking.ranks, 0
        assert (ranks.candidates == 32).all()
        for user in range(48):
            scores = ranker.score(history, np.array([user]), np.arange(40)[None], mesh=assembly.mesh)[0]
            open_items = np.setdiff1d(np.arange(40), history.of(user))
            want = 1 + (scores[open_items] > scores[targets.items[user]] + 1e-6).sum()
            best = open_items[np.argsort(-scores[open_items], kind="stable")]
            if beams == 40:
                assert ranks.rank[user] == want
                np.testing.assert_allclose(scores[ranking.lists[user]], scores[best[:5]], atol=1e-6)
            else:
                assert ranks.rank[user] in (want, 32) or ranks.rank[user] <= 3
                missed += ranks.rank[user] == 32
                assert (ranking.lists[user] >= 0).sum() == 3
        assert ranking.missed == missed
    with pytest.raises(ValueError, match="no order to check"):
        check_order(ranker, assembly.split, "test", mesh=assembly.mesh)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("generation.ids", "nowhere.index.json", "experiments.semantic_ids"),
        ("generation.model", "tigger", "did you mean 'tiger'"),
        ("peft.method", "lora", "a generator is trained whole"),
        ("loss.name", "bpr", "leave it out"),
        ("generation.shift", 1, "its keys are no numbers"),
        ("generation.options", {"wdith": 8}, "did you mean 'width'"),
    ],
)
def test_wrong_options_are_told_before_training(study, tmp_path, key, value, said):
    config = load_study(str(study)).get_config("tiger")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=said):
        run(config, tmp_path)


def test_the_study_is_described():
    for arg in generation_beauty.ARGS:
        assembly = assemble(generation_beauty.get_config(arg))
        assert isinstance(assembly, GenerationAssembly) == (arg != "id")
    table = checked(generation_beauty.table())
    assert table.rows is not None
    assert {group for section in table.rows for group in section} == {t.group for t in generation_beauty.sweep()}
    with pytest.raises(ValueError, match="did you mean 'tiger'"):
        generation_beauty.get_config("tigre")
