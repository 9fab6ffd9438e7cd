"""CLIP's text tower beside that of transformers."""

from tests.models.encoders.parity import check
from tests.models.vision.parity import TEXT


def test_states_gradients_and_folders_are_those_of_transformers(tmp_path):
    check("clip_text_model", tmp_path, **{**TEXT, "pad_token_id": 0, "hidden_act": "quick_gelu"})
