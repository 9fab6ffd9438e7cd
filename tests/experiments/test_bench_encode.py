"""Both sides of the benchmark of encoding give the same vectors."""

import numpy as np
import pytest

from experiments.benchmarks import encode


def test_titles_are_as_long_as_those_of_a_catalogue_and_the_same_every_time():
    texts = encode.titles(500)
    assert texts == encode.titles(500)
    sizes = [len(text.split()) for text in texts]
    assert (min(sizes), max(sizes)) == (2, 10)
    assert 5 < np.mean(sizes) < 6


@pytest.mark.long
def test_a_measurement_shows_parity():
    measured = encode.measure("titles", encode.titles(70), repeats=1)
    assert max(measured["largest_difference"], measured["packed_difference"]) < 1e-5 < measured["largest_value"]
    assert measured["packed_padding"] < measured["padding"]
    assert measured["torch_batch"] in encode.PEER_BATCHES
    assert {"ratio_torch", "ours_s", "torch_s", "ours_tokenising_s"} < set(measured)
