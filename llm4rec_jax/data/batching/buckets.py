"""Sizes that batches and texts are padded to, few enough that few programs are compiled."""

import numpy as np

# No limit on the number of tokens.
ANY = 2**31 - 1

TOKEN_BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def bucket(size: int, multiple_of: int = 1) -> int:
    """Returns the smallest of 16, 24, 32, 48, 64, 96, … that holds `size`, rounded up to a multiple of `multiple_of`.

    Example:
      >>> bucket(17), bucket(17, multiple_of=7)
      (24, 28)
    """
    power = 16
    while size > power * 3 // 2:
        power *= 2
    smallest = power if size <= power else power * 3 // 2
    return -(-smallest // multiple_of) * multiple_of


def token_bucket(length: int, most: int = ANY) -> int:
    """Returns the smallest token bucket that holds a text of `length` tokens; beyond the last bucket, a multiple of it.

    Args:
      length: number of tokens.
      most: number of positions of the encoder. No bucket is longer, unless the text is.

    Example:
      >>> token_bucket(50), token_bucket(400, most=500), token_bucket(600)
      (64, 500, 1024)
    """
    smallest = next((b for b in TOKEN_BUCKETS if b >= length), -(-length // TOKEN_BUCKETS[-1]) * TOKEN_BUCKETS[-1])
    return max(min(smallest, most), length)


def text_bucket(length: int, most: int = ANY) -> int:
    """Returns the smallest of 8, 12, …, 32, 40, …, 64, 80, … that holds a text of `length` tokens.

    These buckets are finer than those of batches: a catalogue needs one program a bucket, and each runs long.

    Args:
      length: number of tokens.
      most: number of positions of the encoder. No bucket is longer, unless the text is.

    Example:
      >>> [text_bucket(length) for length in (3, 9, 33, 65)]
      [8, 12, 40, 80]
    """
    step = max(4, (1 << max(length - 1, 0).bit_length()) // 8)
    return max(min(max(-(-length // step) * step, 8), most), length)


def text_groups(lengths: np.ndarray, most: int = ANY) -> list[tuple[np.ndarray, int]]:
    """Returns the rows of the texts that share a `text_bucket`, and the bucket's number of tokens, for each bucket.

    Args:
      lengths: number of tokens of each text, [n].
      most: number of positions of the encoder.

    Example:
      >>> [(rows.tolist(), length) for rows, length in text_groups(np.array([3, 9, 7]))]
      [([0, 2], 8), ([1], 12)]
    """
    padded = np.array([text_bucket(int(length), most) for length in lengths])
    return [(np.flatnonzero(padded == length), int(length)) for length in np.unique(padded)]


def group_lengths(lengths: np.ndarray, cost: int, most: int = ANY) -> np.ndarray:
    """Returns the length that each text of a collection is padded to, in the groups that take the fewest tokens.

    Args:
      lengths: number of tokens of each text, [n].
      cost: padding, in tokens, that one more group has to save, since each group is compiled by itself.
      most: number of positions of the encoder.

    Returns:
      Padded lengths [n], multiples of four, or `most`.

    Example:
      >>> lengths = np.array([3, 4, 7, 30])
      >>> group_lengths(lengths, cost=0).tolist(), group_lengths(lengths, cost=10).tolist()
      ([4, 4, 8, 32], [8, 8, 8, 32])
    """
    sizes, of_size = np.unique(np.maximum(np.minimum(-(-lengths // 4) * 4, most), lengths), return_inverse=True)
    texts = np.concatenate([[0], np.cumsum(np.bincount(of_size))])
    # Dynamic programme: the least cost of the texts of the first `end` sizes, whose last group begins at size
    # `begins[end]`. With sizes [4, 8, 32] and end 3, the last group is one of [4, 8, 32], [8, 32] and [32].
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
