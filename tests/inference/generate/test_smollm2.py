"""SmolLM2-135M goes on with texts as it does in transformers."""

import jax
import numpy as np
import pytest

from llm4rec_jax.data.features.tokens import tokenizer
from llm4rec_jax.inference.generate import Generator
from llm4rec_jax.inference.generate.beams import Beams
from llm4rec_jax.models.encoders import huggingface

pytestmark = pytest.mark.long
TEXTS = ["The Matrix is a 1999 science fiction film directed by", "A user liked Toy Story (1995) and will also like"]
STEPS = 16


@pytest.mark.parametrize("beams", [None, Beams(4, length_penalty=0.6)])
def test_texts_are_those_of_transformers(beams):
    import torch
    from transformers import AutoModelForCausalLM

    try:
        folder = huggingface.resolve("smollm2")
    except FileNotFoundError:
        pytest.skip("SmolLM2 is not installed: `make setup` does it without SMALL=1")
    tokens = tokenizer(folder)
    rows = [tokens(text)["input_ids"] for text in TEXTS]
    longest = max(map(len, rows))
    ids = np.array([[0] * (longest - len(row)) + row for row in rows])
    mask = np.arange(longest) >= longest - np.array([len(row) for row in rows])[:, None]
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    options = {} if beams is None else {"num_beams": beams.num_beams, "length_penalty": beams.length_penalty}
    wanted = theirs.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask.astype(int)),
        max_new_tokens=STEPS,
        do_sample=False,
        **options,
    )[:, longest:].numpy()
    decoder, params = huggingface.load(folder, language_head=True)
    with jax.default_matmul_precision("highest"):
        if beams is None:
            ours = np.asarray(Generator(decoder).greedy((params, {}), ids, mask, STEPS).ids)
        else:
            ours = np.asarray(Generator(decoder).beam_search((params, {}), ids, mask, STEPS, beams).ids)[:, 0]
    print(tokens.batch_decode(ours))
    np.testing.assert_array_equal(ours[:, : wanted.shape[1]], wanted)
