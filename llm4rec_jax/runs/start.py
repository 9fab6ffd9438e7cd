"""The encoder that a run takes over from an earlier one, as that has tuned it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm4rec_jax.models.encoders.huggingface import quantize_encoder
from llm4rec_jax.runs import folder
from llm4rec_jax.training.checkpoint import CheckpointError, best_state


def tuned_encoder(config: Any, assembly: Callable[[Any], Any]) -> dict[str, Any] | None:
    """Returns the encoder's parameters at the end of the run `config.init_from`, its method folded into the weights.

    Args:
      config: Configuration of the run that starts.
      assembly: Makes the assembly of the other run's configuration.

    Returns:
      The parameters, or None where no run is named or the other run's encoder is as it came.

    Raises:
      CheckpointError: There is no such run, or its encoder cannot be taken over.
    """
    if config.init_from is None:
        return None
    workdir = Path(config.init_from)
    delta = best_state(workdir)["delta"]
    tuned = bool(jax.tree.leaves(delta))
    if not tuned and not (workdir / "config.json").exists():
        return None
    theirs: Any = folder.config_of(workdir)
    if "text" not in theirs.inputs.split("+") or (not tuned and theirs.init_from is None):
        return None
    for key in ("path", "layers", "pretrained", "quantize"):
        if config.encoder[key] != theirs.encoder[key]:
            raise CheckpointError(
                f"{workdir} tuned an encoder with config.encoder.{key}={theirs.encoder[key]}, but here it is "
                f"{config.encoder[key]}: give the same, or start from a run whose encoder was frozen"
            )
    other = assembly(theirs)
    params = {"encoder": other.pretrained.params["encoder"]}
    if not tuned:
        return params["encoder"]
    if theirs.peft.within != "encoder" or other.method.merge is None:
        raise CheckpointError(
            f"{workdir} tuned its {theirs.peft.within} by {theirs.peft.method!r}, which cannot be folded into the "
            "encoder's weights, and its other parts fit that: start from a run whose encoder was frozen, or tuned by a "
            "method that can"
        )
    merged = jax.tree.map(np.asarray, other.method.merge(params, delta)["encoder"])
    form = config.encoder.quantize
    return merged if form is None else quantize_encoder(other.pretrained.encoder, merged, form)
