"""Both sides of the benchmark of ranking find what the definition says."""

import numpy as np

from experiments.benchmarks import rank


def test_every_side_finds_the_ranks_of_the_definition(monkeypatch):
    # More than one batch and one chunk for the peers, and lists longer than the last chunk.
    monkeypatch.setattr(rank, "BATCH", 16)
    monkeypatch.setattr(rank, "CHUNK", 300)
    case = rank.draw(40, 1215, 8, 5)
    assert all(len(set(row)) == 6 for row in np.column_stack([case.history, case.target]))
    scores = case.users.astype(np.float64) @ case.items.T.astype(np.float64)
    own = np.take_along_axis(scores, case.target[:, None], 1)
    np.put_along_axis(scores, case.history, -np.inf, 1)
    expected = (scores >= own).sum(1)
    assert len(set(expected)) > 20
    for side in rank.SIDES.values():
        np.testing.assert_array_equal(side(case)(), expected)


def test_a_measurement_shows_parity_and_memory():
    measured = rank.measure(40, 1215, 8, 5, repeats=1)
    assert [measured[f"different_ranks_{name}"] for name in rank.SIDES] == [0, 0, 0, 0]
    assert min(measured[f"{name}_peak_mib"] for name in rank.SIDES) >= 0
    assert {"ratio_torch", "ratio_torch_topk", "ratio_numpy"} < set(measured)
