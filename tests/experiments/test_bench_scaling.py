"""The compiler's analysis of steps on devices that do nothing."""

import pytest

from experiments.benchmarks import cache, scaling
from llm4rec_jax.runs.assemble import Assembly
from tests.helpers import tiny


def over_text(folder):
    """LoRA in the last of the two blocks of an encoder that reads the tiny dataset."""
    config = cache.configuration(1, blocks=2)
    config.model.width, config.train.batch_size, config.train.history = 8, 16, 5
    config.encoder.path, config.text.item = str(tiny.encoder_folder(folder)), "the {title}."
    assembly = Assembly(config)
    assembly.__dict__["dataset"] = tiny.dataset()
    return assembly


def test_a_step_on_several_devices_is_analysed_without_running(tmp_path):
    assembly = over_text(tmp_path)
    one, data, model = (scaling.measure(assembly, *layout) for layout in ((1, 1), (4, 1), (2, 2)))
    assert sum(one["collectives"].values()) == one["collectives_mib"] == 0
    assert data["collectives"]["all-reduce"] > 0
    assert data["collectives_mib"] > 0
    assert data["gflop"] < one["gflop"] / 2
    assert model["arguments_mib"] < one["arguments_mib"]
    assert (model["data"], model["model"]) == (1, 2)


def test_collectives_are_counted_in_a_program():
    program = """
      %a = f32[8,4]{1,0} all-reduce(%b), replica_groups={}
      %c = (bf16[2]{0}, s32[]) all-gather-start(%d), dimensions={0}
      %e = bf16[2]{0} all-gather-done(%c)
      %f = f32[8]{0} add(%all-reduce.1, %g)
    """
    numbers, moved = scaling.collectives(program)
    assert {kind: n for kind, n in numbers.items() if n} == {"all-reduce": 1, "all-gather": 1}
    assert moved == 8 * 4 * 4 + 2 * 2 + 4


@pytest.mark.long
def test_the_largest_encoder_is_the_last_that_fits():
    found = scaling.largest("side", most=150 * 2**20, texts=2, tokens=4)
    assert found["held_mib"] <= found["device_mib"] < found["next_held_mib"]
    assert found["width"] == 64 * found["layers"] * 2 / 3
    with pytest.raises(ValueError, match="an encoder of two heads needs"):
        scaling.largest("full", most=2**20, texts=2, tokens=4)
