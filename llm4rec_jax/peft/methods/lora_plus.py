"""LoRA+: LoRA whose two matrices learn at different rates."""

from typing import Any

import optax

from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.methods.lora import lora
from llm4rec_jax.peft.registry import METHODS


@METHODS.register("lora_plus", "Hayou et al. 2024, arXiv 2402.12354")
def lora_plus(
    ratio: float = 16.0,
    rank: int = 8,
    alpha: float = 8.0,
    dropout: float = 0.0,
    rslora: bool = False,
    target: str = r".*/(query|value)",
) -> Peft:
    """LoRA with the learning rate of B `ratio` times that of A. Hayou et al. 2024 (arXiv 2402.12354).

    Args:
      ratio: λ. The learning rate of the run is A's.
      rank, alpha, dropout, rslora, target: see `lora`.
    """
    if ratio <= 0:
        raise ValueError(f"lora_plus: ratio is {ratio}, must be above 0")

    def optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        def faster(updates: Any, params: Any) -> Any:
            return {site: {**ab, "b": ratio * ab["b"]} for site, ab in updates.items()}

        return optax.chain(tx, optax.stateless(faster))

    return lora(rank, alpha, dropout, rslora, target)._replace(optimizer=optimizer)
