"""Layouts that `config.mesh` gives a run; they are no part of its identity."""

import json

import pytest

from configs import movielens_100k
from llm4rec_jax.models.encoders.base import TRANSFORMER_RULES
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.folder import RunFolderError
from llm4rec_jax.sharding import FULLY_SHARDED, ITEM_RULE, USER_TABLE_RULE


@pytest.mark.parametrize(
    ("arg", "users", "model", "fsdp", "rules"),
    [
        ("lora", "transformer", 1, None, []),
        ("lora", "transformer", 1, True, [FULLY_SHARDED]),
        ("lora", "transformer", 2, False, [*TRANSFORMER_RULES]),
        ("id+text", "transformer", 2, True, [*TRANSFORMER_RULES, ITEM_RULE, FULLY_SHARDED]),
        ("id", "mf", 2, None, [ITEM_RULE, USER_TABLE_RULE]),
        ("id", "lightgcn", 2, True, [USER_TABLE_RULE, FULLY_SHARDED]),
    ],
)
def test_rules_are_those_of_the_parts_that_exist(arg, users, model, fsdp, rules):
    config = movielens_100k.get_config(arg)
    config.model.users = users
    config.mesh.model, config.mesh.fsdp = model, fsdp
    assert Assembly(config).rules == rules
    assert dict(Assembly(config).mesh.shape) == {"data": 8 // model, "model": model}


def test_a_run_goes_on_in_another_layout_and_not_with_another_seed(tmp_path):
    config = movielens_100k.get_config("id")
    run_folder.open_for(config, tmp_path)
    (tmp_path / "checkpoints" / "last" / "3").mkdir(parents=True)
    config.mesh.model, config.mesh.fsdp = 2, True
    run_folder.open_for(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mesh"] == {"model": 2, "fsdp": True}
    config.seed = 1
    with pytest.raises(RunFolderError, match=r"they differ in config.seed \(1 asked for, 0 there\)"):
        run_folder.open_for(config, tmp_path)
