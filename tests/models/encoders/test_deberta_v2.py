"""DeBERTa against transformers, and its distances."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.encoders.deberta_v2 import DebertaV2
from llm4rec_jax.models.layers.relative import log_distances
from tests.models.encoders.parity import check

SMALL = {"vocab_size": 41, "num_hidden_layers": 2, "intermediate_size": 29, "max_position_embeddings": 18}
V3 = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 4,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
SEPARATE = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 5,
    "type_vocab_size": 3,
    "embedding_size": 11,
}
C2P = {"pos_att_type": "c2p", "share_att_key": False, "norm_rel_ebd": "none"}
CONV = {"conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 3}


@pytest.mark.parametrize(
    "fields",
    [
        {**V3, **CONV, "hidden_size": 21, "num_attention_heads": 3},
        {**SEPARATE, "hidden_size": 20, "num_attention_heads": 5, "hidden_act": "relu", "layer_norm_eps": 1e-5},
        {
            **V3,
            "pos_att_type": "c2p",
            "share_att_key": False,
            "norm_rel_ebd": "none",
            "hidden_size": 12,
            "num_attention_heads": 2,
        },
        {"relative_attention": True, "pos_att_type": "p2c", "hidden_size": 12, "num_attention_heads": 2},
    ],
    ids=["version 3, convolution", "separate projections", "c2p alone", "p2c alone"],
)
def test_parity(tmp_path, fields):
    check("deberta-v2", tmp_path, **SMALL, **fields)


@pytest.mark.parametrize(("count", "longest"), [(256, 512), (4, 18), (7, 40), (32, 512)])
def test_distances_are_those_of_transformers(count, longest):
    distances = np.arange(-600, 601)
    theirs = make_log_bucket_position(torch.tensor(distances), count, longest)
    np.testing.assert_array_equal(log_distances(distances, count, longest), theirs.numpy())


@pytest.fixture(scope="module")
def small():
    """A model of one block with every switch on, and its parameters."""
    fields = {**SMALL, **V3, **CONV, "hidden_size": 12, "num_attention_heads": 3, "num_hidden_layers": 1}
    encoder = DebertaV2(find_family("deberta-v2").config_from_hf(fields).with_dropout(0.0))
    ids = np.ones((1, 2), int)
    params = jax.jit(encoder.init)(jax.random.key(0), ids, ids)
    return encoder, jax.tree.map(lambda a: a + 0.3 * np.random.default_rng(0).normal(size=a.shape), params)


def test_states_do_not_depend_on_padding(small):
    """The convolution sees nothing of it, on either side."""
    encoder, params = small
    apply = jax.jit(encoder.apply)
    ids = np.array([[0, 0, 5, 6, 7, 0], [5, 6, 7, 0, 0, 0]])
    states = np.asarray(apply(params, ids, ids != 0))
    np.testing.assert_allclose(states[0, 2:5], states[1, :3], atol=1e-5)
    np.testing.assert_allclose(apply(params, ids[:1, 2:5], ids[:1, 2:5] != 0)[0], states[0, 2:5], atol=1e-5)


def test_remat_keeps_gradients(small):
    encoder, params = small
    ids = np.array([[5, 6, 7, 0]])

    def gradients(encoder):
        return jax.jit(jax.grad(lambda params: encoder.apply(params, ids, ids != 0)[0, :3, 1].sum()))(params)

    again = gradients(encoder.clone(config=dataclasses.replace(encoder.config, remat=True)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients(encoder), again)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type has 'p2p'; only c2p and p2c"),
        ({"relative_attention": False}, "relative_attention is false, but only true is supported"),
        ({"pos_att_type": None}, "pos_att_type is empty, must name c2p, p2c or both"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd is 'batch_norm', must be none or layer_norm"),
        ({"position_buckets": 2000}, "position_buckets is 2000, must be from 2 to twice the 512 distances"),
        ({"position_buckets": 1}, "position_buckets is 1, must be from 2"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4, must be odd"),
        ({"conv_kernel_size": 3, "conv_groups": 7}, "hidden_size 1536 is not a multiple of conv_groups 7"),
        ({"conv_act": "mish"}, "conv_act 'mish' is not one of"),
        ({"attention_head_size": 48}, "attention_head_size is 48, but only 64 is supported"),
        ({"is_decoder": True}, "is_decoder is set"),
    ],
)
def test_unsupported(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("deberta-v2").config_from_hf({"relative_attention": True, "pos_att_type": "c2p", **fields})


def test_a_convolution_cannot_be_packed(small):
    with pytest.raises(ValueError, match="packing: the convolution reads over the ends of texts in a row: give"):
        dataclasses.replace(small[0].config, packing=True)
