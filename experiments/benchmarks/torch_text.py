"""The peer of `benches.train` in torch: transformers' BERT, peft's LoRA, an MLP, and a causal transformer of users."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.benchmarks import torch_device, torch_encoder
from experiments.benchmarks.torch_device import put
from experiments.benchmarks.torch_sasrec import SasRec, Sizes, places
from llm4rec_jax.trees import flatten

# Windows whose positions "usual" encodes at a time: 256 would take some 100 GiB.
TOGETHER = 8
Reading = Literal["usual", "strong", "sorted"]


class Data(NamedTuple):
    """Attributes:
    ids, lengths: tokens of every item [I, L], and how many [I].
    known: rows of the items that targets are compared with, [N], ascending.
    windows, real: histories and targets [E, H + 1] as rows of items, and which positions have a target, [E, H].
    """

    ids: np.ndarray
    lengths: np.ndarray
    known: np.ndarray
    windows: np.ndarray
    real: np.ndarray


class Projection(nn.Module):
    """Norm, hidden layer, GELU, D."""

    def __init__(self, encoder: int, hidden: int, width: int) -> None:
        super().__init__()
        self.norm, self.hidden = nn.LayerNorm(encoder, eps=1e-6), nn.Linear(encoder, hidden)
        self.output = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(functional.gelu(self.hidden(self.norm(x)), approximate="tanh"))


class Training:
    """Fused Adam, the gradient's norm clipped, softmax over the catalogue at real positions only.

    Args:
      folder: of the encoder.
      method: "lora" or "full".
      delta: ours, as the method makes it of the encoder.
      params: the projection and the user model, ours by path.
      data: see `Data`.
      rate, clip, heads: of training and of the user model.
      dtype: type of the computation; parameters are float32.
      reading: "usual" encodes every real position of every history, "strong" each item of the batch once, padded to the
        longest, "sorted" in groups of a length. All encode the catalogue that targets are compared with once a step.
    """

    def __init__(
        self,
        folder: Path,
        method: str,
        delta: Mapping[str, Any],
        params: Mapping[str, Any],
        data: Data,
        *,
        rate: float,
        clip: float,
        heads: int,
        dtype: str,
        reading: Reading,
    ) -> None:
        self._data, self._reading, self._clip, self._dtype = data, reading, clip, dtype
        encoder = torch_encoder.load(folder)
        tensors = torch_encoder.tensor_names(folder)
        names = partial(torch_encoder.lora_name, names=tensors) if method == "lora" else tensors.tensor
        self._encoder = torch_encoder.with_lora(encoder, delta, tensors) if method == "lora" else encoder
        width, (wide, hidden) = params["project/output/kernel"].shape[1], params["project/hidden/kernel"].shape
        length = params["users/position/embedding"].shape[0]
        layers = sum(path.endswith("ffn/up/kernel") for path in params)
        # The table of ids is not used: item embeddings come from texts.
        self._users = SasRec(Sizes(1, width, layers, heads, length, 0.0)).to(torch_device.DEVICE)
        self._project = Projection(wide, hidden, width).to(torch_device.DEVICE)
        arrays = dict(self._encoder.named_parameters())
        own = flatten(dict(delta))
        self._places = {path: (arrays[names(path)], slice(None)) for path in own}
        self._places |= {path: place for path, place in places(self._users).items() if path != "ids/embedding"}
        for name, parameter in self._project.named_parameters():
            kernel = "scale" if name.startswith("norm") else "kernel"
            path = name.replace(".", "/").replace("weight", kernel)
            self._places[f"project/{path}"] = parameter, slice(None)
        if missing := set(self._places) ^ {*own, *params}:
            raise RuntimeError(f"weights on one side only: {', '.join(sorted(missing))}")
        for path, array in {**own, **params}.items():
            parameter, rows = self._places[path]
            parameter.data[rows] = put(_turned(path, np.array(array)))
        # Query, key and value are rows of one.
        self._trained = list({id(parameter): parameter for parameter, _ in self._places.values()}.values())
        self._adam = torch.optim.Adam(self._trained, lr=rate, fused=True)
        self._place = np.full(len(data.ids), -1)
        self._place[data.known] = np.arange(len(data.known))

    def _contexts(self, rows: np.ndarray) -> Tensor:
        """Returns vectors of these items, [U, D], padded to the longest."""
        lengths = self._data.lengths[rows]
        longest = lengths.max()
        mask = put(np.arange(longest) < lengths[:, None])
        ids = put(self._data.ids[rows, :longest]).long()
        states = self._encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weights = mask[..., None].to(states.dtype)
        return self._project((states * weights).sum(1) / weights.sum(1))

    def _catalogue(self) -> Tensor:
        known = self._data.known
        if self._reading != "sorted":
            return self._contexts(known)
        group = -(-self._data.lengths[known] // 4)
        members = [np.flatnonzero(group == g) for g in np.unique(group)]
        vectors = torch.cat([self._contexts(known[each]) for each in members])
        return vectors[put(np.argsort(np.concatenate(members)))]

    def _backward(self, numbers: np.ndarray) -> float:
        """Adds the gradients of the mean loss of these windows, which it returns."""
        with torch_device.computing_in(self._dtype):
            catalogue = self._catalogue()
        leaf = catalogue.detach().requires_grad_()
        positions, value = int(self._data.real[numbers].sum()), 0.0
        for part in self._parts(numbers):
            with torch_device.computing_in(self._dtype):
                loss = self._loss(part, leaf) / positions
            loss.backward()
            value += float(loss.detach())
        catalogue.backward(leaf.grad)
        return value

    def _loss(self, numbers: np.ndarray, catalogue: Tensor) -> Tensor:
        """The sum over the real positions of these windows."""
        rows, real = self._data.windows[numbers], self._data.real[numbers]
        if self._reading == "usual":
            flat = self._contexts(rows[:, :-1][real])
            at = np.where(real, np.cumsum(real).reshape(real.shape) - 1, 0)
            history = flat[put(at)]
        else:
            history = catalogue[put(self._place[rows[:, :-1]])]
        user_embeddings = self._users.over(history).flatten(0, 1)[put(np.flatnonzero(real))]
        wanted = put(self._place[rows[:, 1:][real]])
        return functional.cross_entropy(user_embeddings @ catalogue.T, wanted, reduction="sum")

    def _parts(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        size = TOGETHER if self._reading == "usual" else len(numbers)
        return (numbers[start : start + size] for start in range(0, len(numbers), size))

    def step(self, numbers: np.ndarray) -> float:
        """One update from these windows; their mean loss."""
        value = self._backward(numbers)
        nn.utils.clip_grad_norm_(self._trained, self._clip, foreach=True)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        torch_device.wait()
        return value

    def probe(self, numbers: np.ndarray) -> dict[str, Any]:
        """Loss and gradients by our names and in our shapes, before any step."""
        loss = self._backward(numbers)
        grads = {}
        for path, (parameter, rows) in self._places.items():
            assert parameter.grad is not None, path
            grads[path] = _turned(path, torch_device.get(parameter.grad[rows])).copy()
        self._adam.zero_grad(set_to_none=True)
        return {"loss": loss, "grads": grads}


def _turned(path: str, array: np.ndarray) -> np.ndarray:
    """Matrices are the transposes of ours."""
    return array.T if path.endswith(("/kernel", "/a", "/b")) else array
