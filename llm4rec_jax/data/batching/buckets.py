"""The few sizes that batches and texts are padded to, so that few programs are compiled."""

import numpy as np

# More tokens than there will be.
ANY = 2**31 - 1

TOKEN_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def bucket(size: int, multiple_of: int = 1) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, … that holds `size`, rounded up to a multiple of `multiple_of`."""
    power = 16
    while size > power * 3 // 2:
        power *= 2
    smallest = power if size <= power else power * 3 // 2
    return -(-smallest // multiple_of) * multiple_of


def token_bucket(length: int, most: int = ANY) -> int:
    """The smallest token bucket that holds a text of so many tokens; beyond the last, a multiple of it.

    No bucket is longer than `most`, an encoder's positions, unless the text is.
    """
    found = next((b for b in TOKEN_BUCKETS if b >= length), -(-length // TOKEN_BUCKETS[-1]) * TOKEN_BUCKETS[-1])
    return max(min(found, most), length)


def text_bucket(length: int, most: int = ANY) -> int:
    """The smallest of 8, 12, …, 32, 40, …, 64, 80, … that holds a text of so many tokens; `most` as above.

    Finer than the buckets of batches: a catalogue is cut into as few programs as it has buckets, and each runs long.
    """
    step = max(4, (1 << max(length - 1, 0).bit_length()) // 8)
    return max(min(max(-(-length // step) * step, 8), most), length)


def group_lengths(lengths: np.ndarray, cost: int, most: int = ANY) -> np.ndarray:
    """What each text of a collection is padded to, in the groups that take the fewest tokens.

    Args:
      lengths: tokens of each text, [n].
      cost: what one more group counts for, in tokens: each is compiled by itself.
      most: an encoder's positions.

    Returns:
      [n], multiples of four, or `most`.
    """
    sizes, of_size = np.unique(np.maximum(np.minimum(-(-lengths // 4) * 4, most), lengths), return_inverse=True)
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
