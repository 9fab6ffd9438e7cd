"""Changes of training by methods, against Hugging Face peft: AdaLoRA's penalty and budget, LoRA+'s two rates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft as hf
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.peft import create, forward
from tests.helpers.torch_side import (
    ADALORA,
    IDS,
    LORA,
    MASK,
    WEIGHTS,
    D,
    adapted,
    array,
    assert_grads,
    randomise,
    tensors,
)

STEPS = 12
RANKS = {"init_rank": 5, "rank": 2, "alpha": 20.0}


@pytest.fixture(scope="module")
def ours(bert_folder):
    return pretrained.load(bert_folder)


def adalora(every: int = 1) -> hf.PeftModel:
    schedule = {"total_step": STEPS, "tinit": 2, "tfinal": 3, "deltaT": every}
    config = hf.AdaLoraConfig(init_r=5, target_r=2, lora_alpha=20, target_modules=["query", "value"], **schedule)
    return adapted(config)


@pytest.mark.parametrize("weights", [0 * WEIGHTS, WEIGHTS], ids=["alone", "with a loss"])
def test_adalora_penalty(ours, weights, monkeypatch):
    """peft adds its penalty to the loss of a model that returns one."""
    model = adalora()
    randomise(model, {"lora_E": 1.0})
    bert = model.get_base_model()
    states_of = bert.forward

    def with_loss(**inputs):
        outputs = states_of(**inputs)
        outputs.loss = (outputs.last_hidden_state * torch.tensor(weights)).sum()
        return outputs

    monkeypatch.setattr(bert, "forward", with_loss)
    want = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long()).loss
    want.backward()
    encoder, params = ours
    method = create("adalora", {"adalora": RANKS})
    start = method.init(jax.random.key(0), params)

    def loss(delta):
        return (forward(encoder, method, params, delta, IDS, MASK) * weights).sum() + method.penalty(delta)

    delta = jax.tree.map(array, tensors(model, start, ADALORA))
    value, grads = jax.value_and_grad(loss)(delta)
    assert method.penalty(delta) > 0.5
    assert float(value) == pytest.approx(want.item(), rel=1e-5)
    assert_grads(grads, tensors(model, start, ADALORA, grad=True))


@pytest.mark.parametrize("every", [1, 2])
def test_adalora_keeps_the_triplets_that_peft_keeps(ours, every):
    """At every step, of new random arrays: peft scores them as they are after the update, so there is none here."""
    model = adalora(every)
    method = create("adalora", {"adalora": {**RANKS, "initial": 2 / STEPS, "final": 3 / STEPS, "every": every}})
    start = method.init(jax.random.key(0), ours[1])
    tx = method.optimizer(optax.set_to_zero(), STEPS)
    state = tx.init(start)
    kept = []
    for step in range(STEPS):
        torch.manual_seed(step)
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p)
                p.grad = torch.randn_like(p)
        delta = jax.tree.map(array, tensors(model, start, ADALORA))
        grads = jax.tree.map(array, tensors(model, start, ADALORA, grad=True))
        updates, state = tx.update(grads, state, delta)
        delta = optax.apply_updates(delta, updates)
        model.base_model.update_and_allocate(step)
        for site, arrays in tensors(model, start, ADALORA).items():
            for name, want in arrays.items():
                np.testing.assert_array_equal(delta[site][name], want.numpy(), err_msg=f"{step} {site} {name}")
        kept.append(sum(int((own["lambda"] != 0).sum()) for own in delta.values()))
    sites = len(start)
    assert kept[:3] == [5 * sites] * 3
    assert kept[-4:] == [2 * sites] * 4
    assert any(2 * sites < number < 5 * sites for number in kept)


def test_lora_plus(ours):
    """AdamW with decay, from random arrays."""
    steps, rate, ratio, decay = 5, 3e-3, 6.0, 0.1
    model = adapted(hf.LoraConfig(r=3, lora_alpha=5, target_modules=["query", "value"]))
    randomise(model)
    encoder, params = ours
    method = create("lora_plus", {"lora_plus": {"ratio": ratio, "rank": 3, "alpha": 5.0}})
    first = delta = jax.tree.map(array, tensors(model, method.init(jax.random.key(0), params), LORA))
    tx = method.optimizer(optax.adamw(rate, weight_decay=decay), steps)
    state = tx.init(delta)
    goal = np.random.default_rng(2).normal(size=(*MASK.shape, D)).astype(np.float32)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay
    )

    @jax.jit
    def step(delta, state):
        def loss(delta):
            error = forward(encoder, method, params, delta, IDS, MASK) - goal
            return (error**2 * MASK[..., None]).sum()

        value, grads = jax.value_and_grad(loss)(delta)
        updates, state = tx.update(grads, state, delta)
        return optax.apply_updates(delta, updates), state, value

    values = []
    for _ in range(steps):
        delta, state, value = step(delta, state)
        theirs.zero_grad()
        states = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK).long()).last_hidden_state
        want = ((states - torch.tensor(goal)) ** 2 * torch.tensor(MASK)[..., None]).sum()
        want.backward()
        theirs.step()
        assert float(value) == pytest.approx(want.item(), rel=1e-5)
        values.append(want.item())
        for site, arrays in tensors(model, first, LORA).items():
            for name, tensor in arrays.items():
                np.testing.assert_allclose(
                    delta[site][name], tensor.numpy(), rtol=0, atol=1e-5, err_msg=f"{site} {name}"
                )
    assert values[-1] < 0.9 * values[0]
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).mean()), delta, first)
    assert all(own["a"] > rate and own["b"] > 3 * own["a"] for own in moved.values())
