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
    """LoRA that trains B at `ratio` times the learning rate of A.

        y = x W + s · (dropout(x) A) B,   rate of B = ratio · rate of A

    The updates of B are multiplied by the ratio after the run's optimizer.

    Try it where LoRA learns slowly: with equal rates, A hardly moves in wide models.

    Args:
      ratio: Learning rate of B as a multiple of the run's learning rate, which is A's.
      rank, alpha, dropout, rslora, target: See `lora`.

    Example:
      >>> from llm4rec_jax import peft
      >>> peft.create("lora_plus", {"lora_plus": {"ratio": 4.0}}).changes_optimizer
      True

    References:
      Hayou et al., LoRA+: Efficient Low Rank Adaptation of Large Models, 2024 (https://arxiv.org/abs/2402.12354).
    """
    if ratio <= 0:
        raise ValueError(f"lora_plus: ratio is {ratio}, must be above 0")

    def optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        def faster(updates: Any, params: Any) -> Any:
            return {site: {**ab, "b": ratio * ab["b"]} for site, ab in updates.items()}

        return optax.chain(tx, optax.stateless(faster))

    return lora(rank, alpha, dropout, rslora, target)._replace(optimizer=optimizer)
