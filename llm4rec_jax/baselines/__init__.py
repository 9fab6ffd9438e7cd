"""Baselines: scorers that are evaluated like any trained recommender, on the same splits and in the same run folder.

Those here are fitted in closed form. `BASELINES` holds them by name; each is called as
`fit(split, texts, seed, **options)` and returns a `scoring.Scorer`:

  split: its training part is all that is fitted to.
  texts: one text an item, or None where a configuration has none.
  seed: of whatever is drawn.

Baselines that are trained (matrix factorisation, SASRec, BERT4Rec, GRU4Rec, LightGCN, two towers) are recommenders
over ids like any other: user models and item tables of `models`, trained by the one loop.

`ANSWER_BASELINES` holds those of the pointwise task: see `answers` and `taste`.
"""

from llm4rec_jax.baselines.core import BASELINES
from llm4rec_jax.baselines.ease import ease
from llm4rec_jax.baselines.gaussian_process import gp
from llm4rec_jax.baselines.neighbours import item_knn, user_knn
from llm4rec_jax.baselines.popularity import popularity
from llm4rec_jax.baselines.random_scores import random
from llm4rec_jax.baselines.rating import ANSWER_BASELINES, liked_share
from llm4rec_jax.baselines.tfidf import tfidf

__all__ = [
    "ANSWER_BASELINES",
    "BASELINES",
    "ease",
    "gp",
    "item_knn",
    "liked_share",
    "popularity",
    "random",
    "tfidf",
    "user_knn",
]
