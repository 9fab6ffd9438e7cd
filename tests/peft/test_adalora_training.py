"""AdaLoRA in a run: it counts updates, prunes on time, and refuses options that cannot be met."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm4rec_jax import sharding
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.peft import create, within
from llm4rec_jax.peft.methods.adalora import AdaLoraState
from llm4rec_jax.sharding import digest
from llm4rec_jax.training.checkpoint import Checkpoints
from llm4rec_jax.training.optimizer import optimizer
from llm4rec_jax.training.rates import rate_factors
from llm4rec_jax.training.task import partition_params
from tests.helpers import tiny
from tests.helpers.training import train
from tests.peft.test_adalora import NAMES, RANK, Reference, adalora, close, lambdas, loss, start


def pruning(state: Any) -> list[AdaLoraState]:
    """The part of an optimizer's state that is AdaLoRA's."""

    def its(part: Any) -> bool:
        return isinstance(part, AdaLoraState)

    return [part for part in jax.tree.leaves(state, is_leaf=its) if its(part)]


def test_in_the_projects_optimizer_it_counts_updates():
    """Clipped, over pairs of batches, with a warm-up: nothing is called for the pruning but the optimizer itself."""
    method, updates = adalora(), 30
    tree = {"delta": start(), "params": {"users": {"kernel": jnp.ones((4, 4))}}}
    options = {"learning_rate": 2e-2, "schedule_kind": "linear", "weight_decay": 0.01, "clip": 0.3}
    tx = optimizer(method, tree, steps=2 * updates, warmup=8, accumulate=2, **options)
    value = loss(method)

    @jax.jit
    def one(tree, state, t):
        grads = jax.grad(lambda tree: value(tree["delta"], t) + jnp.square(tree["params"]["users"]["kernel"]).mean())(
            tree
        )
        moves, state = tx.update(grads, state, tree)
        return grads, optax.apply_updates(tree, moves), state

    reference, state, norms = Reference(updates), tx.init(tree), []
    for update in range(updates):
        first, half, state = one(tree, state, 2.0 * update)
        jax.tree.map(np.testing.assert_array_equal, half, tree)
        second, after, state = one(tree, state, 2.0 * update + 1)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
        norms.append(float(optax.tree.norm(mean)))
        clipped = jax.tree.map(lambda g, norm=norms[-1]: g * min(1.0, 0.3 / norm), mean)
        kept = reference.step(tree["delta"], clipped["delta"])
        # The warm-up begins at a rate of 0.
        want = np.zeros_like(kept) if update == 0 else kept
        np.testing.assert_array_equal(lambdas(after["delta"]) != 0, want, err_msg=f"update {update}")
        tree = after
    assert max(norms) > 0.3
    assert (lambdas(tree["delta"]) != 0).sum() == RANK * len(NAMES)
    (found,) = pruning(state)
    assert found.step == updates
    for site in NAMES:
        close(found.sensitivity[site]["p"], reference.sensitivity[site, "p"])


def test_in_training(tmp_path: Path):
    """A run of `train` ends with what the budget leaves."""
    split, folder = tiny.split(), tiny.encoder_folder(tmp_path / "encoder")
    texts = item_texts(split.dataset.items, "the {title}.")
    tokens = tokenise(texts, tokenizer(folder), 16, tmp_path / "cache")
    encoder, params = pretrained.load(folder)
    model = recommender(encoder=encoder, users="mean", width=16)
    params = init(model, jax.random.key(0), params)
    method = within(create("adalora", {"adalora": {"init_rank": 4, "rank": 1}}), "encoder")
    workdir = tmp_path / "run"
    train(
        model, method, params, split, workdir, tokens=tokens, steps=20, batch_size=16, history=8, learning_rate=1e-2,
        eval_every=20, metric="ndcg@5", mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )  # fmt: skip
    # `train` returns the best state by validation, which is not always the last.
    trainable, frozen = partition_params(method, params, jax.random.key(0))
    tx = optimizer(method, trainable, learning_rate=1e-2, steps=20)
    like = {"step": jnp.zeros((), jnp.int32), "trainable": trainable, "opt_state": tx.init(trainable)}
    checkpoints = Checkpoints(workdir, digest(frozen))
    state = checkpoints.restore("last", like).state
    checkpoints.close()
    assert state["step"] == 20
    weights = [own["lambda"] for own in state["trainable"]["delta"]["encoder"].values()]
    assert len(weights) == 4
    assert sum(int((w == 0.0).sum()) for w in weights) == 4 * (4 - 1)
    (found,) = pruning(state["opt_state"])
    assert found.step == 20
    assert all(a.any() for a in jax.tree.leaves((found.sensitivity, found.uncertainty)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 13}, "adalora: rank is 13, must be from 1 to init_rank, 12"),
        ({"rank": 0}, "adalora: rank is 0"),
        ({"initial": 0.6, "final": 0.4}, r"adalora: initial 0\.6 and final 0\.4"),
        ({"initial": -0.1}, r"adalora: initial -0\.1"),
        ({"final": -0.1}, r"final -0\.1"),
        ({"every": 0}, "adalora: every is 0"),
        ({"beta1": 1.0}, r"adalora: beta1 is 1\.0"),
        ({"beta2": 1.0}, r"adalora: beta2 is 1\.0"),
        ({"beta2": -0.5}, r"adalora: beta2 is -0\.5"),
        ({"dropout": 1.0}, r"adalora: dropout is 1\.0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        create("adalora", {"adalora": options})


def test_too_few_updates():
    method = adalora(initial=0.4, final=0.5)
    with pytest.raises(ValueError, match="adalora: 2 updates leave no time to prune"):
        method.optimizer(optax.adam(1e-3), 2)
    with pytest.raises(ValueError, match="adalora: 2 updates leave no time to prune"):
        optimizer(method, {"delta": start(), "params": {}}, learning_rate=1e-3, steps=8, accumulate=4)
    method.optimizer(optax.adam(1e-3), 10)


@pytest.mark.parametrize("spec", ["adalora", "galore", "lora_plus", "lora+adalora"])
def test_learning_rates_by_path_leave_its_delta_alone(spec):
    method = create(spec)
    whole = within(method, "encoder")
    params = {"encoder": {"layer_0": {"attention": {"query": {"kernel": jnp.ones((4, 4))}}}}}
    tree = {"delta": whole.init(jax.random.key(0), params), "params": {"users": {"kernel": jnp.ones((4, 4))}}}
    options = {"learning_rate": 0.1, "steps": 10}
    for pattern in ("delta/.*", ".*kernel" if spec == "galore" else ".*/query/[abp]"):
        with pytest.raises(ValueError, match=rf"delta/encoder/.* of its own, but {re.escape(spec)} decides itself"):
            optimizer(whole, tree, factors=rate_factors(tree, scales={pattern: 2.0}), **options)
    with pytest.raises(ValueError, match=rf"'lion', but {re.escape(spec)} decides itself"):
        optimizer(whole, tree, name="lion", **options)
    optimizer(whole, tree, factors=rate_factors(tree, scales={"params/.*": 2.0}), **options)
    plain = within(create("lora"), "encoder")
    tree["delta"] = plain.init(jax.random.key(0), params)
    optimizer(plain, tree, factors=rate_factors(tree, scales={"delta/.*": 2.0}), **options)
