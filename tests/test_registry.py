"""Registries: former names of entries."""

import pytest

from llm4rec_jax.registry import Registry


def test_an_alias_finds_its_entry_and_warns_once():
    shapes = Registry("shape")
    shapes.register("square", aliases=("quad",))(lambda side=1: 4 * side)
    with pytest.warns(FutureWarning, match="the shape 'quad' is now called 'square'"):
        assert shapes.build("quad", side=2) == 8
    # Warnings are errors in these tests, so a second one would fail here.
    assert shapes.lookup("quad") is shapes["square"]
    assert shapes.current_name("quad") == "square"
    assert list(shapes) == ["square"]


@pytest.mark.parametrize("name", ["square", "quad"])
def test_names_and_aliases_are_taken_once(name):
    shapes = Registry("shape")
    shapes.register("square", aliases=("quad",))(object())
    with pytest.raises(ValueError, match="registered already"):
        shapes.register(name)(object())
    with pytest.raises(ValueError, match="registered already"):
        shapes.register("circle", aliases=(name,))(object())
    assert list(shapes) == ["square"]


def test_former_names_of_options():
    shapes = Registry("shape")
    shapes.register("square", option_aliases={"edge": "side"})(lambda side=1: 4 * side)
    with pytest.warns(FutureWarning, match="the option 'edge' of the shape 'square' is now called 'side'"):
        assert shapes.build("square", edge=2) == 8
    assert shapes.build("square", edge=3) == 12
    with pytest.raises(ValueError, match=r"unknown option of shape 'square': 'edges'.* Choose from: side$"):
        shapes.build("square", edges=2)
