"""Curves of losses for their pages in the gallery, computed by the losses themselves."""

import io

import jax
import jax.numpy as jnp
import matplotlib
from matplotlib.figure import Figure

from llm4rec_jax.losses.ranking import Loss

_CANDIDATES = 8


def loss_curve(loss: Loss) -> str:
    """Returns an SVG image of a loss and its gradient by the score of the target, from -6 to 6.

    The other candidates have a score of 0 and equal probabilities; without candidates the label is 1.
    """
    if loss.takes("num_items"):
        loss = loss.bind(num_items=1000)

    def value(score: jax.Array) -> jax.Array:
        if loss.negatives == "none":
            return loss(score, jnp.float32(1.0))
        scores = jnp.concatenate([score[None], jnp.zeros(_CANDIDATES)])
        drawn = jnp.zeros(_CANDIDATES + (loss.negatives != "sampled"))
        return loss(scores, jnp.int32(0), drawn - jnp.log(_CANDIDATES), None)

    scores = jnp.linspace(-6.0, 6.0, 241)
    values, slopes = jax.vmap(jax.value_and_grad(value))(scores)
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axis = figure.subplots()
    axis.plot(scores, values, color="#0072b2", label="loss")
    axis.plot(scores, slopes, color="#d55e00", linestyle="--", label="gradient")
    axis.set_xlabel("score of the target")
    axis.legend(frameon=False, labelcolor="#808080")
    # One grey that light and dark pages both show well.
    axis.tick_params(colors="#808080")
    axis.xaxis.label.set_color("#808080")
    for spine in axis.spines.values():
        spine.set_color("#808080")
    axis.grid(color="#808080", alpha=0.25)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "llm4rec_jax", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
