"""SmolLM2-135M, a real model: its states, logits and next-token loss are torch's, and LoRA trains it."""

import jax
import numpy as np
import optax
import pytest

from llm4rec_jax import peft
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.training import metric_writer
from llm4rec_jax.trees import flatten
from tests.helpers import tiny
from tests.helpers.training import train

try:
    FOLDER = huggingface.resolve("smollm2")
except FileNotFoundError:
    pytest.skip("SmolLM2 is not installed: `make setup` does it without SMALL=1", allow_module_level=True)

import torch
from transformers import AutoModelForCausalLM

TEXTS = ["The Matrix is a 1999 science fiction film directed by the Wachowskis.", "Toy Story (1995)"]


@pytest.mark.parametrize("layers", [3, pytest.param(30, marks=pytest.mark.long)])
def test_states_logits_and_loss_are_torch_s(layers):
    rows = [tokenizer(FOLDER)(text)["input_ids"] for text in TEXTS]
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows])
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="eager", num_hidden_layers=layers).eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), output_hidden_states=True
        )
    decoder, params = huggingface.load(FOLDER, layers=layers)
    states = decoder.apply({"params": params}, ids, mask)
    logits = decoder.apply({"params": params}, states, method="logits")
    # States reach 46 after 30 blocks: 3e-6 of that.
    wanted = theirs.hidden_states[-1].numpy()[mask]
    np.testing.assert_allclose(np.asarray(states)[mask], wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)
    loss = optax.softmax_cross_entropy_with_integer_labels
    read = len(rows[0]) - 1
    ours, their = (
        float(loss(scores[0, :read], ids[0, 1 : read + 1]).mean())
        for scores in (np.asarray(logits), theirs.logits.numpy())
    )
    assert ours == pytest.approx(their, rel=1e-5)
    assert layers < 30 or ours < 4.0


def test_lora_trains_the_first_layers(tmp_path):
    split = tiny.split(users=16)
    tokens = tokenise(split.dataset.items["title"].to_list(), FOLDER, 8)
    encoder, params = huggingface.load(FOLDER, layers=2)
    model = recommender(encoder=encoder, users="mean", pooling="last", project="linear", width=16)
    method = peft.within(peft.create("lora", {"lora": {"rank": 4}}), "encoder")
    start = init(model, jax.random.key(0), params)
    result = train(
        model, method, start, split, tmp_path, tokens=tokens,
        loss="in_batch", steps=6, batch_size=8, history=4, learning_rate=1e-2, eval_every=6, log_every=1,
    )  # fmt: skip
    losses = [r["loss"] for r in metric_writer.read(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    delta = flatten(result.trainable["delta"])
    assert len(delta) == 2 * 2 * 2
    assert all(np.abs(array).max() > 0 for array in delta.values())
