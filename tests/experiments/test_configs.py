"""Every model of the study can be assembled, and has the parts that its name promises."""

import pytest

from configs.movielens_100k import ARGS, get_config
from experiments.assemble import Assembly


@pytest.mark.parametrize("arg", ARGS)
def test_every_model_of_the_study_is_described(arg):
    config = get_config(arg)
    assembly = Assembly(config)
    assert assembly.reads_text == (arg != "id")
    assert config.peft.method == (arg if arg not in ("id", "id+text") else "frozen")
    assert assembly.method.init is not None
    with pytest.raises(AttributeError, match="learning_rate"):
        config.train.lerning_rate = 1.0


def test_wrong_scales_are_named():
    config = get_config("id")
    config.train.scales = "params/ids/.*=fast"
    with pytest.raises(ValueError, match="regex=factor"):
        _ = Assembly(config).scales


def test_scales_are_read_in_order():
    config = get_config("id")
    config.train.scales = r"params/ids/.*=0.5 params/.*=2"
    assert Assembly(config).scales == {"params/ids/.*": 0.5, "params/.*": 2.0}
