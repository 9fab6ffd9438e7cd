"""Rules between tensors and parameters: fused tensors, other names, and everything that does not fit."""

import numpy as np
import pytest

from llm4rec_jax.models.encoders.weights import Names, Rule, WeightError, embedding, linear, norm

RULES = (
    *embedding("wte", "embeddings/word", also=("shared",)),
    *linear("h.{i}.attn", "layer_{i}/query", "layer_{i}/key", "layer_{i}/value"),
    *linear("h.{i}.up", "layer_{i}/up", transpose=False),
    *norm("h.{i}.ln", "layer_{i}/norm", bias=False),
)
WIDTHS = {"query": 6, "key": 4, "value": 4, "up": 5}
SHAPES = {
    "embeddings/word/embedding": (11, 6),
    **{f"layer_{i}/{name}/kernel": (6, width) for i in (0, 1) for name, width in WIDTHS.items()},
    **{f"layer_{i}/{name}/bias": (width,) for i in (0, 1) for name, width in WIDTHS.items()},
    **{f"layer_{i}/norm/scale": (6,) for i in (0, 1)},
}


@pytest.fixture
def names() -> Names:
    return Names(RULES, prefixes=("model.",), dropped=(r"head\..*",))


@pytest.fixture
def flat() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}


def test_fused_tensors_of_unequal_parts(names, flat):
    tensors = names.to_tensors(flat)
    assert tensors["h.1.attn.weight"].shape == (14, 6)
    np.testing.assert_array_equal(tensors["h.1.attn.weight"][6:10], flat["layer_1/key/kernel"].T)
    np.testing.assert_array_equal(tensors["h.0.attn.bias"][10:], flat["layer_0/value/bias"])
    np.testing.assert_array_equal(tensors["h.0.up.weight"], flat["layer_0/up/kernel"])
    again = names.to_params({f"model.{name}": a for name, a in tensors.items()} | {"head.weight": np.ones(2)}, SHAPES)
    assert set(again) == set(flat)
    for path, array in flat.items():
        np.testing.assert_array_equal(again[path], array, err_msg=path)


def test_other_names_are_read_and_never_written(names, flat):
    tensors = names.to_tensors(flat)
    old = {name.replace("ln.weight", "ln.gamma").replace("wte", "shared"): a for name, a in tensors.items()}
    assert old.keys() != tensors.keys()
    assert names.to_params(old, SHAPES).keys() == flat.keys()
    assert names.tensor("embeddings/word/embedding") == "wte.weight"


def test_names_of_modules(names):
    assert names.module("layer_10/key") == "h.10.attn"
    assert names.site("model.h.3.up.lora_A.weight") == "layer_3/up"
    assert names.site("model.h.3.upper.weight") is None
    assert names.paths("h.0.attn.bias") == ("layer_0/query/bias", "layer_0/key/bias", "layer_0/value/bias")
    assert names.paths("head.bias") == ()
    assert names.paths("h.00.up.weight") is None
    for odd in ("layer_0/query", "layer_01/norm/scale", "other"):
        with pytest.raises(WeightError, match=f"{odd} is not a parameter"):
            names.tensor(odd)
    with pytest.raises(WeightError, match="layer_0 is not a module"):
        names.module("layer_0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("h.0.attn.weight"), r"missing: h\.0\.attn\.weight$"),
        (lambda t: t.update({"h.2.up.bias": np.ones(5)}), r"beyond what config\.json describes: h\.2\.up\.bias"),
        (
            lambda t: t.update({"h.0.attn.weight": np.ones((13, 6))}),
            r"is \(13, 6\), but config\.json makes it \(14, 6\)",
        ),
        (lambda t: t.update({"h.0.up.weight": np.ones((5, 6))}), r"is \(5, 6\), but config\.json makes it \(6, 5\)"),
        (lambda t: t.update({"model.wte.weight": np.ones((11, 6))}), r"both stand for embeddings/word/embedding"),
        (lambda t: t.update({"extra": np.ones(1)}), r"no rule knows what to do with: extra"),
    ],
)
def test_what_does_not_fit_is_named(names, flat, change, message):
    tensors = names.to_tensors(flat)
    change(tensors)
    with pytest.raises(WeightError, match=message):
        names.to_params(tensors, SHAPES)


@pytest.mark.parametrize("depth", [3, 10**12])
def test_more_blocks_than_tensors(names, flat, depth):
    tensors = names.to_tensors(flat)
    names.check_depth(tensors, 2)
    with pytest.raises(WeightError, match=r"missing: h\.2\.attn\.weight, h\.2\.up\.weight, h\.2\.attn\.bias"):
        names.check_depth(tensors, depth)


def test_a_rule_of_several_parts_needs_all_of_them():
    names = Names((Rule("qk.weight", ("query/kernel", "key/kernel"), transpose=True),))
    with pytest.raises(WeightError, match=r"missing: qk\.weight"):
        names.check_paths(["query/kernel"], ["query/kernel", "key/kernel"])
