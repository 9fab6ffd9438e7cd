"""The few sizes that batches and texts are padded to, so that few programs are compiled."""

import numpy as np

TOKEN_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def bucket(size: int, multiple_of: int = 1) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, … that holds `size`, rounded up to a multiple of `multiple_of`."""
    power = 16
    while size > power * 3 // 2:
        power *= 2
    smallest = power if size <= power else power * 3 // 2
    return -(-smallest // multiple_of) * multiple_of


def token_bucket(length: int) -> int:
    """The smallest token bucket that holds a text of so many tokens; beyond the last, a multiple of it."""
    return next((b for b in TOKEN_BUCKETS if b >= length), -(-length // TOKEN_BUCKETS[-1]) * TOKEN_BUCKETS[-1])


def text_bucket(length: int) -> int:
    """The smallest of 8, 12, …, 32, 40, …, 64, 80, … that holds a text of so many tokens.

    Finer than the buckets of batches: a catalogue is cut into as few programs as it has buckets, and each runs long.
    """
    step = max(4, (1 << max(length - 1, 0).bit_length()) // 8)
    return max(-(-length // step) * step, 8)


def group_lengths(lengths: np.ndarray, cost: int) -> np.ndarray:
    """What each text of a collection is padded to, in the groups that take the fewest tokens.

    Args:
      lengths: tokens of each text, [n].
      cost: what one more group counts for, in tokens: each is compiled by itself.

    Returns:
      [n], multiples of four.
    """
    sizes, of_size = np.unique(-(-lengths // 4) * 4, return_inverse=True)
    texts = np.concatenate([[0], np.cumsum(np.bincount(of_size))])
    # Least cost of the texts of the first `end` sizes, whose last group begins at the size `begins[end]`.
    least, begins = np.zeros(len(sizes) + 1), np.zeros(len(sizes) + 1, int)
    for end in range(1, len(sizes) + 1):
        costs = least[:end] + cost + (texts[end] - texts[:end]) * sizes[end - 1]
        begins[end] = np.argmin(costs)
        least[end] = costs[begins[end]]
    padded, end = np.empty_like(sizes), len(sizes)
    while end:
        padded[begins[end] : end] = sizes[end - 1]
        end = begins[end]
    return padded[of_size]
