"""The encoder of T5 against transformers."""

import warnings

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import T5Config as TheirConfig
from transformers import T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer
from transformers.models.t5.modeling_t5 import T5Attention

from llm4rec_jax.data.features.tokens import tokenise
from llm4rec_jax.models.encoders.base import find_family
from llm4rec_jax.models.encoders.checkpoint import PretrainedError
from llm4rec_jax.models.encoders.huggingface import load
from llm4rec_jax.models.encoders.sentence_folder import load_text_encoder
from llm4rec_jax.models.encoders.t5 import T5, T5Config
from llm4rec_jax.models.layers.relative import buckets
from tests.models.encoders.parity import check

SMALL = {"vocab_size": 41, "num_layers": 3, "d_ff": 29}
BUCKETS = {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 9}


def test_parity(tmp_path):
    check("t5", tmp_path / "a", kind=T5EncoderModel, **SMALL, d_model=21, num_heads=3, d_kv=5)
    check("t5", tmp_path / "b", kind=T5EncoderModel, **SMALL, **BUCKETS, d_model=15, num_heads=5, d_kv=7,
          feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-3, tie_word_embeddings=False)  # fmt: skip


@pytest.mark.parametrize("count", [4, 10, 32])
def test_buckets_are_those_of_transformers(count):
    at = torch.arange(400)
    theirs = T5Attention._relative_position_bucket(at - at[:, None], num_buckets=count, max_distance=100)
    np.testing.assert_array_equal(buckets(400, count, 100), theirs.numpy())


def states(encoder, params) -> np.ndarray:
    ids = np.arange(3, 15).reshape(2, 6)
    return np.asarray(encoder.apply({"params": params}, ids, np.ones_like(ids)))


def test_the_encoder_of_a_whole_t5(tmp_path):
    """The decoder and the head of a checkpoint are left out; its table may be there under both of its names."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(TheirConfig(**SMALL, d_model=12, num_heads=2, d_kv=4)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 15).reshape(2, 6)
    want = model.encoder(ids).last_hidden_state.detach().numpy()
    np.testing.assert_allclose(states(*load(tmp_path)), want, atol=1e-5)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("decoder.block") for name in tensors)
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    np.testing.assert_allclose(states(*load(tmp_path)), want, atol=1e-5)
    del tensors["shared.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    np.testing.assert_allclose(states(*load(tmp_path)), want, atol=1e-5)
    tensors["shared.weight"] = tensors["encoder.embed_tokens.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(PretrainedError, match="both stand for embeddings/word/embedding, and differ"):
        load(tmp_path)


def test_a_gate_makes_another_family(tmp_path):
    config = find_family("t5").config_from_hf({"feed_forward_proj": "gated-silu"})
    assert (config.model_type, config.hidden_act, config.gated) == ("t5_v1_1", "silu", True)
    written = find_family("t5_v1_1").config_to_hf(config)
    assert (written["model_type"], written["feed_forward_proj"]) == ("t5", "gated-silu")
    assert find_family("t5").config_from_hf(written) == config
    assert find_family("t5").config_from_hf({}).model_type == "t5"


def test_dropout_follows_the_last_norm_too():
    config = T5Config(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2).with_dropout(0.3)
    encoder, ids = T5(config), np.ones((2, 4), int)
    params = jax.jit(encoder.init)(jax.random.key(0), ids, ids)
    dropped = jax.jit(lambda params: encoder.apply(params, ids, ids, rngs={"dropout": jax.random.key(1)}))(params)
    assert (dropped == 0).any()
    assert not (dropped == 0).all()


def test_a_folder_of_sentence_t5(tmp_path):
    """Encoder, mean, a dense layer without bias, and unit length."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.base.modules import Dense, Normalize, Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling
    torch.manual_seed(0)
    words = [(word, -float(i)) for i, word in enumerate(["<pad>", "</s>", "<unk>", "▁", "▁the", "▁red", "▁lamp"])]
    T5Tokenizer(vocab=words, extra_ids=0).save_pretrained(tmp_path / "model")
    T5EncoderModel(TheirConfig(**SMALL, d_model=12, num_heads=2, d_kv=4)).save_pretrained(tmp_path / "model")
    dense = Dense(12, 7, bias=False, activation_function=torch.nn.Identity())
    modules = [Transformer(str(tmp_path / "model")), Pooling(12, pooling_mode="mean"), dense, Normalize()]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    theirs.save(str(tmp_path / "st"), create_model_card=False)
    text, texts = load_text_encoder(tmp_path / "st"), ["the red lamp", "lamp"]
    tokens = tokenise(texts, text.folder.model, 32, tmp_path / "cache")
    mask = np.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
    states = text.encoder.apply({"params": text.params["encoder"]}, tokens.ids, mask)
    ours = text.pooling.apply({"params": text.params["pooling"]}, states, mask)
    np.testing.assert_allclose(ours, theirs.encode(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feed_forward_proj": "wide-gelu"}, "feed_forward_proj is 'wide-gelu', must be an activation or gated-"),
        ({"feed_forward_proj": "mish"}, "feed_forward_proj has 'mish', which is not one of gelu"),
        ({"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"}, "dense_act_fn is 'relu', but only 'gelu_new'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"relative_attention_num_buckets": 5}, "relative_attention_num_buckets is 5, must be even"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance is 8, must be above 8"),
        ({"d_kv": 0}, "head_dim is 0, must be at least 1"),
    ],
)
def test_unsupported(fields, message):
    with pytest.raises(ValueError, match=message):
        find_family("t5").config_from_hf(fields)


def test_no_token_types():
    ids = np.ones((1, 3), int)
    with pytest.raises(ValueError, match="t5 has no token types"):
        T5(T5Config(num_hidden_layers=1)).init(jax.random.key(0), ids, ids, ids)
