"""Explanations: evidence is that of transformers' likelihoods, and texts are its greedy generation."""

from typing import Any

import jax
import pytest
import torch
from transformers import AutoModelForCausalLM

from llm4rec_jax.data.features.tokens import tokenizer
from llm4rec_jax.inference.explanations import BESIDE, REASON, explain
from llm4rec_jax.models.encoders.huggingface import load
from llm4rec_jax.sharding import make_mesh
from tests.runs.test_prompt_runs import folder as folder

HISTORY = ["red lamp", "green chair", "blue door", "red lamp"]


def test_evidence_and_words_are_those_of_transformers(folder):
    (decoder, params), words = load(folder, language_head=True), tokenizer(folder)
    mesh = make_mesh(devices=jax.devices()[:1])
    titles = ["white vase", "red bench"]
    found = explain(decoder, params, words, mesh, HISTORY, titles, num_evidence=2, max_new_tokens=5)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    def likelihood(title: str, after: str) -> float:
        prompt, answer = words(BESIDE.format(title=after))["input_ids"], words(title)["input_ids"]
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0], -1)
        return sum(float(scores[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))

    for title, (evidence, text) in zip(titles, found, strict=True):
        assert evidence == sorted(set(HISTORY), key=lambda read: -likelihood(title, read))[:2]
        ids = torch.tensor([words(REASON.format(evidence=", ".join(evidence), title=title))["input_ids"]])
        with torch.no_grad():
            made = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert text.split()[0] == "Because"
        written = str(words.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()
        assert written.startswith(text.removeprefix("Because "))


def test_an_empty_history_explains_nothing():
    with pytest.raises(ValueError, match="the history is empty"):
        explain(None, None, None, None, [], ["x"])  # pyright: ignore[reportArgumentType]
