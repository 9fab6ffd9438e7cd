"""The speed that a training log reports: counts of a batch by hand, and peaks by name."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm4rec_jax.data.batching.batch import Batch, TokenGroup
from llm4rec_jax.training import throughput as speed


def mask(*lengths: int, width: int) -> np.ndarray:
    return np.arange(width) < np.array(lengths)[:, None]


def batch() -> Batch:
    """Items 7, 3 and 5; 7 pads the first group and 5 the second. Five inputs, four targets, two negatives each."""
    groups = [mask(3, 2, 3, width=4), mask(6, 6, width=8)]
    return Batch(
        users=np.arange(2),
        items=np.array([7, 3, 7, 5, 5]),
        history=np.zeros((2, 3), int),
        history_mask=mask(3, 2, width=3),
        target=np.zeros((2, 3), int),
        target_mask=mask(2, 2, width=3),
        tokens=tuple(TokenGroup(kept.astype(int), kept) for kept in groups),
        negatives=np.zeros((2, 3, 2), int),
    )


def test_a_batch_is_counted():
    assert speed.batch_stats(batch()) == speed.BatchStats(
        tokens=3 + 2 + 6, token_places=3 * 4 + 2 * 8, items=3, mentions=5 + 4 + 2 * 4
    )


def test_prompts_are_tokens_and_ids_are_none():
    only_ids = batch()._replace(tokens=(), negatives=None)
    assert speed.batch_stats(only_ids)[:4] == (0, 0, 3, 9)
    prompt = mask(5, 2, width=6)
    assert speed.batch_stats(only_ids._replace(prompt=TokenGroup(prompt.astype(int), prompt)))[:2] == (7, 12)


def test_figures_are_sums_over_the_time():
    steps = [speed.BatchStats(60, 80, 10, 40, 1e9), speed.BatchStats(40, 120, 10, 60, 3e9)]
    assert speed.rates(steps, 2.0, peak=8e9) == pytest.approx(
        {"tokens_per_second": 50, "padding_share": 0.5, "unique_share": 0.2, "mfu": 0.25}
    )
    assert "padding_share" not in speed.rates([speed.BatchStats(0, 0, 10, 40, 1e9)], 2.0, peak=8e9)


def test_a_line_has_what_is_known():
    counts = {"examples_per_second": 10.0, "programs": 2, "peak_bytes": 2**30}
    steps = [speed.BatchStats(0, 0, 10, 40, 4e9)]
    shown = speed.line({**counts, **speed.rates(steps, 2.0, peak=8e9)})
    assert shown == "10 examples/s, 25% unique, MFU 25%, 2 programs, 1.00 GiB"
    # The whole catalogue is compared with, and what a loop repeats is not counted.
    steps = [speed.BatchStats(60, 80, 100, 40, 0.0)]
    shown = speed.line({**counts, **speed.rates(steps, 2.0, peak=8e9)})
    assert shown == "10 examples/s, 30 tokens/s (25% padding), 2 programs, 1.00 GiB"


@pytest.mark.parametrize(
    ("kind", "platform", "half", "single"),
    [
        ("TPU v4", "tpu", 275e12, 275e12),
        ("TPU v5 lite", "tpu", 197e12, 197e12),
        ("TPU v5", "tpu", 459e12, 459e12),
        ("TPU v6 lite", "tpu", 918e12, 918e12),
        ("NVIDIA A100-SXM4-40GB", "gpu", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", "gpu", 989e12, 494.5e12),
        ("NVIDIA H200", "gpu", 989e12, 494.5e12),
    ],
)
def test_peaks_are_those_of_the_data_sheets(kind, platform, half, single):
    device = types.SimpleNamespace(device_kind=kind, platform=platform)
    assert speed.peak(device, jnp.bfloat16) == half
    assert speed.peak(device, jnp.float32) == single


def test_what_is_in_no_table_is_measured():
    rate = speed.peak(jax.devices()[0], jnp.float32)
    assert 1e8 < rate < 1e15
    assert rate == speed.product_rate("float32")


def test_a_trace_is_of_some_steps_only(tmp_path: Path):
    lines: list[str] = []
    with speed.Profile(tmp_path, lines.append, lambda: None, first=1, steps=2) as profile:
        for step in range(6):
            profile.before_step()
            assert len(lines) == (step >= 3)
    assert lines == [f"2 steps are traced in {tmp_path}, for TensorBoard or ui.perfetto.dev"]
    assert list(tmp_path.rglob("*.trace.json.gz"))
    with speed.Profile(tmp_path / "shorter", lines.append, lambda: None, first=0, steps=9) as profile:
        profile.before_step()
    assert lines[1:] == [f"only 1 steps are traced in {tmp_path / 'shorter'}: no more were made"]
    assert list((tmp_path / "shorter").rglob("*.trace.json.gz"))
