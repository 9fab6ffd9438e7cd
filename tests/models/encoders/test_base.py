"""The registry of families, and configurations that are read from a `config.json`."""

import dataclasses

import pytest

from llm4rec_jax.models.encoders.base import EncoderConfig, Sites, families, find_family, register
from llm4rec_jax.models.encoders.bert import BERT
from llm4rec_jax.models.encoders.config_json import config_fields


def test_families_register_themselves_once():
    assert find_family("bert") is BERT
    assert all(name == record.model_type for name, record in families().items())
    with pytest.raises(ValueError, match="model family 'bert' is registered already"):
        register(BERT)
    with pytest.raises(ValueError, match="unknown model family 'brt'; did you mean 'bert'"):
        find_family("brt")


@pytest.mark.parametrize("name", sorted(families()))
def test_a_family_names_what_it_adapts(name):
    """peft's default modules are modules of the family."""
    from llm4rec_jax.models.encoders.huggingface import names_of

    family = find_family(name)
    names = names_of(family)
    modules = {names.module(f"layer_0/{site}") for site in family.sites.linear.values()}
    assert {module.rpartition(".")[2] for module in modules} >= set(family.target_modules)


def test_sites():
    assert Sites(gate="ffn/gate", output=None).linear == {
        "query": "attention/query",
        "key": "attention/key",
        "value": "attention/value",
        "gate": "ffn/gate",
        "up": "ffn/up",
        "down": "ffn/down",
    }


@dataclasses.dataclass(frozen=True)
class Config(EncoderConfig):
    eps: float = 1e-5
    tied: bool = False


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"vocab_size": "7"}, "vocab_size is '7', must be of type int"),
        ({"vocab_size": True}, "vocab_size is True, must be of type int"),
        ({"vocab_size": None}, "vocab_size is None, must be of type int"),
        ({"eps": "1e-5"}, "eps is '1e-5', must be of type float"),
        ({"tied": 1}, "tied is 1, must be of type bool"),
        ({"width": 2.5}, "width is 2.5, must be of type int"),
    ],
)
def test_fields_of_the_wrong_type(raw, message):
    with pytest.raises(ValueError, match=message):
        config_fields(Config, raw, hidden_size="width")


def test_fields():
    raw = {"width": 8, "eps": 1, "pad_token_id": None, "compute_dtype": "float16", "other": object()}
    assert config_fields(Config, raw, hidden_size="width") == {"hidden_size": 8, "eps": 1, "pad_token_id": None}


def test_dropout():
    config = BERT.config_from_hf({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.2})
    assert (config.dropout, config.with_dropout(0.0).dropout) == (0.2, 0.0)
    assert EncoderConfig().dropout == 0.0
    with pytest.raises(ValueError, match=r"hidden_dropout_prob is 1\.0, must be at least 0 and below 1"):
        config.with_dropout(1.0)
