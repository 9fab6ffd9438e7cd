"""Refusals of `merge`. tests/parity compares its folders with transformers and sentence-transformers."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import llm4rec_jax
from llm4rec_jax.peft import create
from llm4rec_jax.peft.hf.save_load import InterchangeError, merge
from tests.helpers.adapters import (
    made,
)
from tests.helpers.small import encoder


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (
            "prefix",
            {},
            "the method 'prefix' cannot be folded into the encoder's weights: write the adapter with `save`",
        ),
        ("houlsby", {}, "the method 'houlsby' cannot be folded .*: keep the run's own checkpoint"),
        ("lora+prefix", {}, r"the method 'lora\+prefix' cannot be folded .*: keep the run's own checkpoint"),
        (
            "lora",
            {"pooling": "attention"},
            "sentence-transformers has no pooling 'attention', only cls, max, mean, mean_sqrt, ",
        ),
        ("lora", {"pooling": "meen"}, "unknown pooling 'meen'; did you mean 'mean'"),
        ("lora", {"max_tokens": 13}, "max_tokens is 13, but the encoder has 12 positions: give 1 to 12"),
        ("lora", {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_merges_that_are_refused(params, tmp_path, spec, options, message):
    method = create(spec)
    delta = method.init(jax.random.key(0), params)
    with pytest.raises(InterchangeError, match=message):
        merge(tmp_path / "model", encoder(), params, method, delta, **{"max_tokens": 12, **options})
    assert not (tmp_path / "model").exists()


def test_merges_of_something_else(params, tmp_path):
    method, delta = made(params, "lora")
    with pytest.raises(InterchangeError, match="not a delta of 'lora'"):
        merge(tmp_path, encoder(), params, method, {"encoder": delta}, max_tokens=12)
    both, broken = create("lora+bitfit"), jax.tree.map(lambda a: a * jnp.nan, delta)
    with pytest.raises(InterchangeError, match=r"not a delta of 'lora\+bitfit'"):
        merge(tmp_path, encoder(), params, both, {"0": delta}, max_tokens=12)
    with pytest.raises(
        InterchangeError, match="merged, these have values that are not finite: layer_0/attention/query"
    ):
        merge(tmp_path, encoder(), params, method, broken, max_tokens=12)
    with pytest.raises(InterchangeError, match=r"holds no tokenizer .*copy the files"):
        merge(tmp_path, encoder(), params, method, delta, max_tokens=12, tokenizer_from=tmp_path)
    assert not any(tmp_path.iterdir())


def test_nothing_of_torch_is_imported():
    for file in (Path(llm4rec_jax.__file__).parent / "peft").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (torch|peft|transformers|pickle)\b", file.read_text(), re.MULTILINE), (
            file
        )
