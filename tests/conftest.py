"""Eight devices on any machine, and small models that transformers makes offline."""

import atexit
import os
import shutil
import tempfile

from tests.helpers.compiling import xla_flags

# Before jax is imported anywhere: tests of sharding want several devices.
os.environ.setdefault("XLA_FLAGS", xla_flags(devices=8))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The commands that tests run compile the same small programs again and again: one cache for each process of tests, and
# not one for all, since an entry is there before it is whole.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="llm4rec-jax-compiled-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

from pathlib import Path

import jax
import pytest
import torch
import transformers
from hypothesis import settings

jax.config.update("jax_default_matmul_precision", "highest")
torch.set_num_threads(2)
# The same examples every time; `--hypothesis-profile=search` draws many others.
settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile("search", database=None, deadline=None, max_examples=2000)
settings.load_profile("same")
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def random_bert(seed: int = 0, **config) -> transformers.BertModel:
    """A small torch BERT whose weights are all random, norms and biases included."""
    small = {
        "vocab_size": 97,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 37,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(seed)
    model = transformers.BertModel(transformers.BertConfig(**(small | config)), add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.2)
    return model


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random BERT, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    random_bert().save_pretrained(folder)
    return folder
