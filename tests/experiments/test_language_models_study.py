"""The study of language models, and configurations that are given a model of another family: run to their tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import transformers

from configs import language_models_movielens as study
from configs import movielens_100k
from experiments.reports.spec import checked
from llm4rec_jax.data.sources import SOURCES
from llm4rec_jax.inference.standardize import center, whiten
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.run import run
from tests.helpers import tiny

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module", autouse=True)
def tiny_source():
    SOURCES["tiny"] = lambda path=None: tiny.dataset(users=24)
    yield
    del SOURCES["tiny"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random models of three families with one tokenizer."""
    place = tmp_path_factory.mktemp("models")
    made = {"bert": tiny.encoder_folder(place / "bert")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(made["bert"])
    configs = {
        "llama": transformers.LlamaConfig(**SIZES, vocab_size=len(tokenizer), num_key_value_heads=1, pad_token_id=0),
        "distilbert": transformers.DistilBertConfig(
            vocab_size=len(tokenizer), dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=37
        ),
    }
    for name, config in configs.items():
        transformers.AutoModel.from_config(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
        made[name] = place / name
    return made


def small(config: Any, steps: int = 4, **values: Any) -> Any:
    """The configuration on the tiny dataset, for a few steps."""
    with config.unlocked():
        config.data.source = "tiny"
        config.text.item, config.model.width = "the {title}.", 8
        config.train.update({"steps": steps, "batch_size": 8, "history": 8, "warmup": 0, "eval_every": steps})
        config.model.users = "mean"
        config.update_from_flattened_dict(values)
    return config


@pytest.mark.parametrize(("family", "pooling", "projections"), [("llama", "Last", 7), ("distilbert", "Mean", 6)])
def test_a_configuration_takes_a_model_of_any_family(family, pooling, projections, folders):
    assembly = Assembly(small(movielens_100k.get_config("lora"), **{"encoder.path": str(folders[family])}))
    assert type(assembly.pretrained.pooling).__name__ == pooling
    delta = assembly.method.init(jax.random.key(0), assembly.params())
    assert len(jax.tree.leaves(delta)) == 2 * 2 * projections


def test_the_study_ends_in_its_table(folders, tmp_path):
    """Random weights, whitened; a frozen language model; and LoRA from where its run ended."""
    paths = {"random": "bert", "smollm2": "llama"}
    results = {}
    for arg in ("random_whitened", "smollm2_8", "smollm2_8_lora"):
        values = {"encoder.path": str(folders[paths[arg.split("_")[0]]])}
        config = study.get_config(arg)
        if config.encoder.layers:
            assert config.encoder.layers == 8
            values["encoder.layers"] = 2
        if arg.endswith("whitened"):
            values["encoder.whiten"] = 6
        if arg.endswith("lora"):
            values["init_from"] = str(tmp_path / "smollm2_8")
        results[arg] = run(small(config, **values), tmp_path / arg)
    assert results["smollm2_8_lora"]["parameters"]["delta"] > 0
    assert all(results[arg]["parameters"]["delta"] == 0 for arg in ("random_whitened", "smollm2_8"))
    assert all(0 < result["test"]["ndcg@10"] < 1 for result in results.values())


def test_rows_of_the_study():
    table = checked(study.table())
    groups = {trial.group for trial in study.sweep()}
    assert {group for section in table.rows for group in section} == groups == set(study.ARGS)
    names = {trial.name for trial in study.sweep()}
    assert all(trial.overrides["init_from"] in names for trial in study.sweep() if "init_from" in trial.overrides)
    config = study.get_config("smollm2_8_centred")
    assert (config.encoder.path, config.encoder.layers, config.encoder.center) == ("smollm2", 8, True)


def test_random_weights_are_the_same_in_every_run(folders):
    def weights(**values: Any) -> Any:
        config = small(study.get_config("random"), **{"encoder.path": str(folders["llama"]), **values})
        return Assembly(config).pretrained.params["encoder"]["layer_0"]["attention"]["query"]["kernel"]

    drawn = weights()
    np.testing.assert_array_equal(drawn, weights(seed=1))
    assert np.abs(drawn - weights(**{"encoder.pretrained": True})).max() > 1e-3


def test_frozen_vectors_are_standardised_where_they_are_computed(folders):
    def vectors(**values: Any) -> np.ndarray:
        assembly = Assembly(small(study.get_config("smollm2"), **{"encoder.path": str(folders["llama"]), **values}))
        return assembly.scorer.text(assembly.params(), assembly.method.init(jax.random.key(0), assembly.params()))

    plain = vectors()
    np.testing.assert_allclose(vectors(**{"encoder.center": True}), plain - plain.mean(0), atol=1e-6)
    whitened = vectors(**{"encoder.whiten": 5})
    covariance = np.linalg.eigvalsh(np.cov(whitened.T, bias=True))
    np.testing.assert_allclose(covariance, [0] * 11 + [1] * 5, atol=1e-4)
    # They are the plain vectors' first principal components.
    axes = np.linalg.svd(plain - plain.mean(0))[2][:5]
    np.testing.assert_allclose(whitened @ axes.T @ axes, whitened, atol=1e-4)


def test_prompts_of_items_and_users(folders, tmp_path):
    folder = tmp_path / "sentences"
    shutil.copytree(folders["bert"], folder)
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (folder / "1_Pooling").mkdir()
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "config_sentence_transformers.json": {"prompts": {"query": "user ", "passage": "lamp "}},
    }.items():
        (folder / name).write_text(json.dumps(content))

    def assembly(**prompts: str) -> Assembly:
        return Assembly(small(movielens_100k.get_config("frozen"), **{"encoder.path": str(folder), **prompts}))

    named = assembly(**{"encoder.item_prompt": "passage", "encoder.user_prompt": "query", "model.users": "text"})
    word = transformers.AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids
    assert set(named.tokens.ids[:, 1]) == {word("lamp")}
    assert named.prompts([np.array([0])], np.array([0])).ids[0, 1] == word("user")
    assert set(assembly().tokens.ids[:, 1]) == {word("the")}
    with pytest.raises(ValueError, match="unknown prompt 'pasage'; did you mean 'passage'"):
        _ = assembly(**{"encoder.item_prompt": "pasage"}).tokens


def test_a_tuned_encoder_is_not_standardised(folders, tmp_path):
    config = small(study.get_config("smollm2_lora"), **{"encoder.path": str(folders["llama"]), "encoder.center": True})
    with pytest.raises(ValueError, match=r"encoder\.center and whiten .* give config\.peft\.method=frozen"):
        run(config, tmp_path / "run")


def test_whitening_more_than_there_is_is_refused():
    vectors = np.random.default_rng(0).normal(size=(4, 6))
    assert np.abs(center(vectors).mean(0)).max() < 1e-12
    with pytest.raises(ValueError, match="4 vectors vary in 3 directions"):
        whiten(vectors, 4)
