"""Every model of the study can be assembled, and has the parts that its name promises."""

import jax
import pytest

from configs import baselines_movielens, s3rec_beauty, unisrec_scientific
from configs.movielens_100k import ARGS, get_config
from experiments import fetch
from experiments.assemble import Assembly
from llm4rec_jax.baselines import BASELINES
from llm4rec_jax.data import sources
from llm4rec_jax.models.graph import LightGcn
from llm4rec_jax.models.users import reads


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
        _ = Assembly(config).scales


def test_scales_are_read_in_order():
    config = get_config("id")
    config.train.scales = r"params/ids/.*=0.5 params/.*=2"
    assert Assembly(config).scales == {"params/ids/.*": 0.5, "params/.*": 2.0}


@pytest.mark.parametrize("arg", baselines_movielens.ARGS)
def test_every_baseline_is_described(arg):
    config = baselines_movielens.get_config(arg)
    assembly = Assembly(config)
    if arg in baselines_movielens.FITTED:
        assert config.baseline.name == arg
        assert assembly.baseline.contexts().shape[0] == assembly.dataset.num_items
        return
    users = assembly.model.users
    assert (reads(users) == "user") == (arg in ("bpr_mf", "lightgcn"))
    if isinstance(users, LightGcn):
        assert users.edges.by_user.shape == (2, len(assembly.split.train))
    shapes = jax.eval_shape(assembly.params)
    items = [a.shape for path, a in jax.tree_util.tree_leaves_with_path(shapes) if 1682 in a.shape]
    assert items == [(1682, 64)], "one table of items"


@pytest.mark.parametrize("study", [s3rec_beauty, unisrec_scientific])
def test_studies_of_published_data_are_described(study):
    for arg in s3rec_beauty.ARGS:
        config = study.get_config(arg)
        assert config.data.published in fetch.PUBLISHED
        assert config.data.source in sources.SOURCES
        assert config.baseline.name is None or config.baseline.name in BASELINES
        method = Assembly(config).bare_method
        assert (method.name == "frozen") == (arg not in s3rec_beauty.TUNED)
    with pytest.raises(ValueError, match=r"unknown model of configs/s3rec_beauty.py 'ids'; did you mean 'id'"):
        study.get_config("ids")


def test_data_is_in_one_place():
    config = s3rec_beauty.get_config("id")
    config.data.path = "elsewhere"
    with pytest.raises(ValueError, match=r"config.data.path and config.data.published are both given"):
        _ = Assembly(config).dataset
