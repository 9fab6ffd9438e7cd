"""Content without learning: TF-IDF vectors of the items' texts."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse

from llm4rec_jax.baselines.core import BASELINES, ScoreRows
from llm4rec_jax.data.splits.split import Split


@BASELINES.register("tfidf")
def tfidf(
    split: Split,
    texts: Sequence[str] | None,
    seed: int = 0,
    ngrams: int = 1,
    min_items: int = 1,
    sublinear: bool = True,
) -> ScoreRows:
    """score(u, i) = the mean cosine of i's TF-IDF vector with those of u's history (scikit-learn's TfidfVectorizer).

    Args:
      texts: one an item.
      ngrams: the longest run of words that is a term.
      min_items: terms in fewer texts are left out.
      sublinear: 1 + log tf in place of tf.

    Raises:
      ValueError: no texts, or texts without any term.
    """
    # Imported here: nothing else of the library needs scikit-learn, whose import takes a second.
    from sklearn.feature_extraction.text import TfidfVectorizer

    if texts is None:
        raise ValueError("the baseline 'tfidf' reads the items' texts, and there are none: set inputs to 'text'")
    vectorizer = TfidfVectorizer(
        ngram_range=(1, ngrams), min_df=min_items, sublinear_tf=sublinear, token_pattern=r"(?u)\b\w+\b"
    )
    vectors = scipy.sparse.csr_array(vectorizer.fit_transform(texts))

    def rows(history: scipy.sparse.csr_array, users: np.ndarray) -> np.ndarray:
        length = np.maximum(np.asarray(history.sum(axis=1)), 1.0)
        return (history @ vectors @ vectors.T).toarray() / length[:, None]

    return ScoreRows(rows, split.dataset.num_items)
