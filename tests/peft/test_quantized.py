"""Methods over an encoder whose weights are stored in few bits: the same as over the dequantised weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.models.encoders.base import families
from llm4rec_jax.models.layers.quantized import dequantize_params, is_quantized, quantize_params
from llm4rec_jax.peft import METHODS, count, create, forward
from llm4rec_jax.peft.hf import save_load
from llm4rec_jax.peft.sites import sites
from llm4rec_jax.sharding import make_mesh, place, specs
from llm4rec_jax.trees import flatten
from tests.helpers.small import moved
from tests.peft.test_families import IDS, MASK, OPTIONS, SMALL, draw

TRAIN_THE_WEIGHTS = {"full", "galore", "last_k"}


def quantized(model, form: str):
    params = jax.tree.map(np.asarray, model.params)
    stored = quantize_params(params, form, model.encoder.family.sites.linear.values(), jnp.float32)
    return jax.tree.map(jnp.asarray, stored)


@pytest.fixture(scope="module")
def llama():
    return draw("llama")


@pytest.mark.parametrize("model_type", sorted(set(families()) - {"clip"}))
def test_every_projection_of_every_family(model_type):
    encoder = families()[model_type].build(families()[model_type].config_from_hf({"model_type": model_type, **SMALL}))
    params = huggingface.abstract_params(encoder, "nf4")
    named, linear = set(encoder.family.sites.linear.values()), sites(params, "kernel")
    projections = [site for site in linear if site.partition("/")[2] in named]
    assert len(projections) == 2 * len(named)
    assert all(is_quantized(linear[site]["kernel"]) for site in projections)
    assert huggingface.parameter_shapes(encoder) == {
        path: array.shape for path, array in flatten(jax.eval_shape(dequantize_params, params)).items()
    }
    states = jax.eval_shape(lambda params: encoder.apply({"params": params}, IDS, MASK), params)
    assert states.shape == (*IDS.shape, 32)


@pytest.mark.parametrize(("form", "most"), [("int8", 0.01), ("nf4", 0.2)])
def test_states(llama, form, most):
    """Close to those of the float model, and those of the dequantised one."""
    params = quantized(llama, form)
    states, floats = llama.apply(llama.params), llama.apply(dequantize_params(params))
    ours = np.asarray(llama.encoder.apply({"params": params}, IDS, MASK))[MASK]
    np.testing.assert_allclose(ours, floats, atol=1e-6 * np.abs(floats).max())
    assert 0 < np.abs(ours - states).mean() < most * np.abs(states).mean()
    assert count(params) == count(llama.params)


@pytest.mark.parametrize("name", sorted(set(METHODS) - TRAIN_THE_WEIGHTS - {"bitfit"}))
def test_methods_start_as_over_floats(llama, name):
    method, params = create(name, {name: OPTIONS.get(name, {})}), quantized(llama, "nf4")
    ours, theirs = (
        jax.jit(method.init)(jax.random.key(0), tree) if name != "vera" else method.init(jax.random.key(0), tree)
        for tree in (params, dequantize_params(params))
    )
    for (path, a), b in zip(flatten(ours).items(), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", sorted(TRAIN_THE_WEIGHTS))
def test_methods_that_train_the_weights_are_refused(llama, name):
    method = create(name, {name: OPTIONS.get(name, {})})
    with pytest.raises(ValueError, match=r"weights of layer_\d/.* are stored in few bits and cannot be trained: leave"):
        method.init(jax.random.key(0), quantized(llama, "int8"))


def test_names_of_parameters_tell_the_family():
    assert huggingface.family_of(quantized(draw("mpnet"), "nf4")).model_type == "mpnet"


def test_norms_can_be_trained(llama):
    delta = create("full", {"full": {"target": ".*norm"}}).init(jax.random.key(0), quantized(llama, "int8"))
    assert set(delta) == set(sites(llama.params, "scale"))


@pytest.mark.parametrize(
    ("name", "form"),
    [("lora", "int8"), ("lora", "nf4"), ("dora", "nf4"), ("ia3", "nf4"), ("oft", "nf4"), ("houlsby", "nf4")],
)
def test_gradients_and_merging(llama, name, form):
    target = {"target": r".*/(query|key|value|output|gate|up|down)"} if name in ("lora", "dora") else {}
    method, params = create(name, {name: OPTIONS.get(name, {}) | target}), quantized(llama, form)
    floats = dequantize_params(params)
    delta = moved(method.init(jax.random.key(0), params), 1, 0.1)
    weights = np.random.default_rng(1).normal(size=(*MASK.shape, 32)).astype(np.float32) * MASK[..., None]

    @jax.jit
    @jax.value_and_grad
    def loss(delta, params):
        return (forward(llama.encoder, method, params, delta, IDS, MASK) * weights).sum()

    (value, grads), (wanted, theirs) = loss(delta, params), loss(delta, floats)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for (path, a), b in zip(flatten(grads).items(), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, float(np.abs(b).max())), err_msg=path)
    if method.merge is not None:
        merged, wanted = flatten(dequantize_params(method.merge(params, delta))), flatten(method.merge(floats, delta))
        assert merged.keys() == wanted.keys()
        for path, array in merged.items():
            np.testing.assert_allclose(array, wanted[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_blocks_are_computed_again(llama):
    method, params = create("lora"), quantized(llama, "nf4")
    again = llama.encoder.clone(config=dataclasses.replace(llama.encoder.config, remat=True))
    delta = moved(method.init(jax.random.key(0), params), 1, 0.1)
    ours, theirs = (
        jax.jit(jax.grad(lambda delta, e=encoder: forward(e, method, params, delta, IDS, MASK)[MASK].sum()))(delta)
        for encoder in (again, llama.encoder)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_a_mesh_cuts_the_codes_as_it_cuts_floats(form):
    model, mesh = draw("bert"), make_mesh(2)
    params = quantized(model, form)
    placed = specs(params, mesh, model.encoder.family.sharding_rules)["layer_0"]
    assert placed["attention"]["query"]["kernel"].codes == PartitionSpec(None, "model")
    assert placed["ffn"]["down"]["kernel"].codes == PartitionSpec("model", None)
    assert placed["ffn"]["down"]["kernel"].scales in (PartitionSpec(None), PartitionSpec(None, None))
    run = jax.jit(lambda params: model.encoder.apply({"params": params}, IDS, MASK))
    ours = run(place(params, mesh, model.encoder.family.sharding_rules))
    np.testing.assert_allclose(np.asarray(ours)[MASK], np.asarray(run(params))[MASK], atol=1e-4)


def test_folders(llama, tmp_path):
    """A quantised encoder is written as floats, read in few bits, and adapted as by Hugging Face's peft."""
    huggingface.save(tmp_path / "base", llama.encoder, llama.params)
    encoder, params = huggingface.load(tmp_path / "base", quantize="nf4", layers=1)
    whole = quantized(llama, "nf4")
    here, there = flatten(params), flatten({n: part for n, part in whole.items() if n != "layer_1"})
    assert here.keys() == there.keys()
    for path, array in here.items():
        np.testing.assert_array_equal(array, there[path], err_msg=path)

    method = create("lora")
    delta = moved(method.init(jax.random.key(0), params), 1)
    states = forward(encoder, method, params, delta, IDS, MASK)[MASK]
    family = encoder.family
    save_load.save(tmp_path / "adapter", method, delta, params, base=str(tmp_path / "base"), family=family)
    loaded = save_load.load(tmp_path / "adapter", params, family=family)
    np.testing.assert_allclose(
        forward(encoder, loaded.method, params, loaded.delta, IDS, MASK)[MASK], states, atol=1e-5
    )
    save_load.merge(tmp_path / "merged", encoder, params, method, delta, max_tokens=24)
    plain, merged = huggingface.load(tmp_path / "merged")
    ours = plain.apply({"params": merged}, IDS, MASK)[MASK]
    np.testing.assert_allclose(ours, states, rtol=0, atol=1e-4 * np.abs(states).max())
