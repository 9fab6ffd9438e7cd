"""The peer of the encoder's benchmarks: transformers' model with scaled dot-product attention, and peft's LoRA."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft as hf
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from experiments.benchmarks import torch_device
from llm4rec_jax.models.encoders.huggingface import names_of, read_config
from llm4rec_jax.models.encoders.weights import Names
from llm4rec_jax.trees import flatten


def load(folder: Path) -> PreTrainedModel:
    """Returns the encoder in float32 without its pooler, no dropout, on the device."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for name in vars(config):
        if "dropout" in name or name.endswith("_pdrop"):
            setattr(config, name, 0.0)
    config.use_cache = False
    pooler = {"add_pooling_layer": False} if config.model_type == "bert" else {}
    model = AutoModel.from_pretrained(
        folder, config=config, attn_implementation="sdpa", dtype=torch.float32, trust_remote_code=False, **pooler
    )
    nn.Module.to(model, torch_device.DEVICE)
    return model


def tensor_names(folder: Path) -> Names:
    """Returns torch's names of our parameters of a folder."""
    return names_of(read_config(folder)[0])


def with_lora(model: PreTrainedModel, delta: Any, names: Names, alpha: int = 8) -> Any:
    """peft's LoRA at the sites of our arrays, {site: {"a", "b"}}, with them."""
    rank = next(iter(delta.values()))["a"].shape[1]
    config = hf.LoraConfig(r=rank, lora_alpha=alpha, target_modules=[names.module(site) for site in delta])
    # By default it has adapters of a base in bfloat16 in float32.
    adapted = hf.get_peft_model(model, config, autocast_adapter_dtype=False)
    arrays = dict(adapted.named_parameters())
    for path, array in flatten(delta).items():
        arrays[lora_name(path, names)].data.copy_(torch.tensor(np.asarray(array).T))
    return adapted


def lora_name(path: str, names: Names) -> str:
    """peft's name of `layer_3/attention/query/a`, whose array is the transpose of ours."""
    site, _, leaf = path.rpartition("/")
    return f"base_model.model.{names.module(site)}.lora_{leaf.upper()}.default.weight"


class Step:
    """A training step: forward, in-batch softmax, backward, fused AdamW.

    Args:
      folder: of the encoder.
      method, delta: see `with_lora`; of "full", all weights.
      rate, temperature: of AdamW and of the softmax.
      numbers: type of the computation, "float32", "bfloat16", or "half" for parameters in bfloat16, too.
      compiled: by torch.compile.
    """

    def __init__(
        self,
        folder: Path,
        method: str,
        delta: Any,
        rate: float,
        temperature: float,
        numbers: str = "float32",
        compiled: bool = False,
    ) -> None:
        model, names = load(folder), tensor_names(folder)
        if numbers == "half":
            nn.Module.to(model, torch.bfloat16)
        self._numbers = numbers
        self._paths, self._temperature = list(flatten(delta)), temperature
        self._name_of = partial(lora_name, names=names) if method == "lora" else names.tensor
        self._model = with_lora(model, delta, names) if method == "lora" else model
        self._model.train()
        self._forward = torch.compile(self._model) if compiled else self._model
        trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)

    def _loss(self, ids: np.ndarray, mask: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        kept = torch_device.put(mask).long()
        with torch_device.computing_in("bfloat16" if self._numbers == "bfloat16" else "float32"):
            states = self._forward(input_ids=torch_device.put(ids).long(), attention_mask=kept).last_hidden_state
        weights = kept[..., None].to(states.dtype)
        vectors = (states * weights).sum(1) / weights.sum(1)
        half = len(ids) // 2
        scores = vectors[:half] @ vectors[half:].T / self._temperature
        return torch.nn.functional.cross_entropy(scores, torch.arange(half, device=scores.device)), vectors

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> None:
        loss, _ = self._loss(ids, mask)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        torch_device.wait()

    def probe(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """Vectors, loss and gradients by our names and in our shapes."""
        loss, vectors = self._loss(ids, mask)
        loss.backward()
        arrays = dict(self._model.named_parameters())
        grads = {}
        for path in self._paths:
            grad = arrays[self._name_of(path)].grad
            assert grad is not None
            grads[path] = torch_device.get(grad.T if path.endswith(("/kernel", "/a", "/b")) else grad).copy()
        self._optimizer.zero_grad(set_to_none=True)
        return {"vectors": torch_device.get(vectors), "loss": float(loss.detach()), "grads": grads}
