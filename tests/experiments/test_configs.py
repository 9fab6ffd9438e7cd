"""Every model of the study can be assembled, and has the parts that its name promises."""

import jax
import pytest

from configs import (
    baselines_movielens,
    baselines_movielens_tuning,
    beauty_tuning_pays,
    beauty_tuning_pays_tuning,
    iisan_scientific,
    s3rec_beauty,
    s3rec_beauty_tuning,
    unisrec_scientific,
    unisrec_scientific_tuning,
)
from configs.movielens_100k import ARGS, get_config
from experiments.reports.spec import checked
from llm4rec_jax.baselines import BASELINES
from llm4rec_jax.data import download, sources
from llm4rec_jax.runs.assemble import Assembly


@pytest.mark.parametrize("arg", ARGS)
def test_every_model_of_the_study_is_described(arg):
    config = get_config(arg)
    assembly = Assembly(config)
    assert assembly.reads_text == (arg != "id")
    assert config.peft.method == (arg if arg not in ("id", "id+text") else "frozen")
    assert assembly.method.init is not None
    with pytest.raises(AttributeError, match="learning_rate"):
        config.train.lerning_rate = 1.0


def test_wrong_scales_are_named():
    config = get_config("id")
    config.train.scales = "params/ids/.*=fast"
    with pytest.raises(ValueError, match="regex=factor"):
        _ = Assembly(config).train_config


def test_scales_are_read_in_order():
    config = get_config("id")
    config.train.scales = r"params/ids/.*=0.5 params/.*=2"
    assert Assembly(config).train_config.scale_by_regex == {"params/ids/.*": 0.5, "params/.*": 2.0}


@pytest.mark.parametrize("arg", baselines_movielens.ARGS)
def test_every_baseline_is_described(arg):
    config = baselines_movielens.get_config(arg)
    assembly = Assembly(config)
    if arg in baselines_movielens.FITTED:
        assert config.baseline.name == arg
        assert assembly.baseline.item_embeddings().shape[0] == assembly.dataset.num_items
        return
    users = assembly.model.users
    assert (users.inputs == "user_id") == (arg in ("bpr_mf", "lightgcn"))
    if arg == "lightgcn":
        assert users.graph.edges.interactions.by_first.shape == (2, len(assembly.split.train))
    shapes = jax.eval_shape(assembly.params)
    items = [a.shape for path, a in jax.tree_util.tree_leaves_with_path(shapes) if 1682 in a.shape]
    assert items == [(1682, 64)], "one table of items"


@pytest.mark.parametrize("study", [s3rec_beauty, unisrec_scientific])
def test_studies_of_published_data_are_described(study):
    for arg in s3rec_beauty.ARGS:
        config = study.get_config(arg)
        assert config.data.published in download.PUBLISHED
        assert config.data.source in sources.SOURCES
        assert config.baseline.name is None or config.baseline.name in BASELINES
        method = Assembly(config).bare_method
        assert (method.name == "frozen") == (arg not in s3rec_beauty.TUNED)
    with pytest.raises(ValueError, match=r"unknown model of configs/s3rec_beauty.py 'ids'; did you mean 'id'"):
        study.get_config("ids")


@pytest.mark.parametrize(
    ("study", "tuning"),
    [
        (baselines_movielens, baselines_movielens_tuning),
        (s3rec_beauty, s3rec_beauty_tuning),
        (unisrec_scientific, unisrec_scientific_tuning),
        (beauty_tuning_pays, beauty_tuning_pays_tuning),
    ],
)
def test_a_study_s_table_has_its_groups_and_says_how_many_settings_were_compared(study, tuning):
    table = checked(study.table())
    assert table.rows is not None
    groups = {trial.group for trial in study.sweep()}
    assert {group for section in table.rows for group in section} == groups == set(table.tried)
    compared = [trial.arg for trial in tuning.sweep()]
    assert {arg: compared.count(arg) for arg in compared} == {
        arg: table.tried[arg] for arg in groups if arg in compared
    }
    for trial in tuning.sweep():
        tuning.get_config(trial.arg).update_from_flattened_dict(dict(trial.overrides))
    assert all(table.tried[group] == 1 for group in groups if group not in compared)


def test_the_study_of_iisan_s_data_reads_its_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    iisan_scientific.FOLDER.mkdir(parents=True)
    users, items = (iisan_scientific.FOLDER / name for name in (
        "am_Industrial_and_Scientific_users.tsv", "Industrial_and_Scientific_items.tsv",
    ))  # fmt: skip
    users.write_text("".join(f"A{n}\t" + " ".join(f"B{(n + k) % 7}" for k in range(5)) + "\n" for n in range(4)))
    items.write_text("".join(f"B{n}\tManometer &amp; Gauge {n}\n" for n in range(7)))
    table = checked(iisan_scientific.table())
    assert table.rows is not None
    assert {group for section in table.rows for group in section} == set(iisan_scientific.ARGS)
    for trial in iisan_scientific.sweep():
        assembly = Assembly(iisan_scientific.get_config(trial.arg))
        assert assembly.titles[0] == "Manometer & Gauge 0"
        tuned = {"lora", "side", "full"}
        assert assembly.bare_method.name == (trial.arg if trial.arg in tuned else "frozen")
        assert trial.overrides.get("init_from") == ("frozen-0" if trial.arg in iisan_scientific.FURTHER else None)
    with pytest.raises(ValueError, match=r"unknown row of configs/iisan_scientific.py 'sidee'; did you mean 'side'"):
        iisan_scientific.get_config("sidee")


def test_data_is_in_one_place():
    config = s3rec_beauty.get_config("id")
    config.data.path = "elsewhere"
    with pytest.raises(ValueError, match=r"config.data.path and config.data.published are both given"):
        _ = Assembly(config).dataset
