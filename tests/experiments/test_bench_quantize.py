"""The benchmark of weights in few bits: its loss is transformers', and fewer bits lose more."""

import numpy as np
import pytest
import torch
import transformers

from experiments.benchmarks import quantize
from llm4rec_jax.data.features import tokens
from llm4rec_jax.models.encoders import huggingface
from tests.helpers import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random Llama with the vocabulary of the tiny encoder."""
    folder = tiny.encoder_folder(tmp_path_factory.mktemp("llama"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    words = len(tokens.tokenizer(folder))
    config = transformers.LlamaConfig(**sizes, vocab_size=words, num_key_value_heads=1, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


TEXTS = [f"the {color} {thing}" for color in ("red", "blue", "green") for thing in ("lamp", "chair", "door", "clock")]


def test_the_loss_is_transformers(folder):
    read = tokens.encode(TEXTS, tokens.tokenizer(folder), 16)
    decoder, params = huggingface.load(folder, language_head=True)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor(read.ids).long()
    mask = torch.arange(ids.shape[1]) < torch.tensor(read.lengths)[:, None]
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss
    assert quantize.next_token_loss(decoder, params, read) == pytest.approx(float(wanted), rel=1e-5)


def test_fewer_bits_lose_more(folder):
    measured = {row["form"]: row for row in quantize.measure(TEXTS, folder)}
    cosines = [measured[form]["cosine"] for form in ("float32", "int8", "nf4")]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[0] == pytest.approx(1, abs=1e-6)
    assert 0.9 < measured["nf4"]["cosine"] < 1 - 1e-5
    assert measured["float32"]["same_neighbours@10"] == 1
    assert all(np.isfinite(row["next_token_loss"]) for row in measured.values())
