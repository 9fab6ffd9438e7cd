"""SASRec in torch, to be timed against: the model of `models.users.Transformer` over ids, trained on every position."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Sizes(NamedTuple):
    """Sizes of the model; `length` is that of the longest history it can read."""

    items: int
    width: int
    layers: int
    heads: int
    length: int
    dropout: float


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + ffn(norm(x)). [B, H, D] -> [B, H, D]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.dropout = sizes.heads, sizes.dropout
        self.attention_norm, self.ffn_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Histories are padded at the end, so no real position reads padding.
        mixed = functional.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + functional.dropout(self.output(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        hidden = functional.gelu(self.up(self.ffn_norm(x)), approximate="tanh")
        return x + functional.dropout(self.down(hidden), self.dropout, self.training)


class SasRec(nn.Module):
    """Histories [B, H] of item rows to user embeddings [B, H, D]."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dropout = sizes.dropout
        self.items = nn.Embedding(sizes.items, sizes.width)
        self.position = nn.Parameter(torch.empty(sizes.length, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def forward(self, history: Tensor) -> Tensor:
        return self.over(self.items(history))

    def over(self, item_embeddings: Tensor) -> Tensor:
        """The same from the item embeddings of histories, [B, H, D]."""
        x = functional.dropout(item_embeddings + self.position[: item_embeddings.shape[1]], self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Training:
    """Adam, the gradient's norm clipped, a cosine schedule, softmax over the catalogue at real positions only.

    Args:
      sizes: of the model.
      weights: ours by path, such as "users/layer_0/ffn/up/kernel".
      windows: histories and targets [E, H + 1] of item rows, and how many of the positions are real, [E].
      batch_size, rate, steps, clip: of training.
      fused: which of torch's forms of Adam; the other is foreach.
    """

    def __init__(
        self,
        sizes: Sizes,
        weights: Mapping[str, Any],
        windows: tuple[np.ndarray, np.ndarray],
        *,
        batch_size: int,
        rate: float,
        steps: int,
        clip: float,
        fused: bool = True,
    ) -> None:
        self._model = SasRec(sizes).eval()
        self._places = places(self._model)
        if missing := set(self._places) ^ set(weights):
            raise RuntimeError(f"weights on one side only: {', '.join(sorted(missing))}")
        for path, (parameter, rows) in self._places.items():
            array = torch.from_numpy(np.array(weights[path]))
            parameter.data[rows] = array.T if path.endswith("/kernel") else array
        self._batch_size, self._rate, self._steps, self._clip = batch_size, rate, steps, clip
        self._step = 0
        self._rows, self._mask = torch.from_numpy(windows[0]).long(), torch.from_numpy(windows[1])
        self._adam = torch.optim.Adam(self._model.parameters(), lr=rate, fused=fused, foreach=not fused)

    def train(self, dropout: bool) -> None:
        """Turns dropout on or off; it is off at first."""
        self._model.train(dropout)

    def loss(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the real positions of these windows, and their user embeddings [P, D]."""
        rows, real = self._rows[numbers], self._mask[numbers].flatten().nonzero().squeeze(1)
        user_embeddings = self._model(rows[:, :-1]).flatten(0, 1).index_select(0, real)
        scores = user_embeddings @ self._model.items.weight.T
        return functional.cross_entropy(scores, rows[:, 1:].flatten().index_select(0, real)), user_embeddings

    def step(self, numbers: Tensor) -> float:
        loss, _ = self.loss(numbers)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip, foreach=True)
        for group in self._adam.param_groups:
            group["lr"] = self._rate * (1 + math.cos(math.pi * min(self._step / self._steps, 1.0))) / 2
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._step += 1
        return float(loss.detach())

    def epoch(self) -> None:
        """Every window once, in another order each time, the last incomplete batch left out."""
        order = torch.randperm(len(self._rows))
        for start in range(0, len(order) - self._batch_size + 1, self._batch_size):
            self.step(order[start : start + self._batch_size])

    def probe(self, numbers: np.ndarray) -> dict[str, Any]:
        """Profiles, loss and gradients by our names and in our shapes, before any step."""
        loss, user_embeddings = self.loss(torch.from_numpy(numbers))
        loss.backward()
        grads = {}
        for path, (parameter, rows) in self._places.items():
            assert parameter.grad is not None
            grad = parameter.grad[rows]
            grads[path] = (grad.T if path.endswith("/kernel") else grad).numpy().copy()
        self._adam.zero_grad(set_to_none=True)
        return {"user_embeddings": user_embeddings.detach().numpy(), "loss": float(loss.detach()), "grads": grads}


def places(model: SasRec) -> dict[str, tuple[nn.Parameter, slice]]:
    """Maps paths of our arrays to rows of a parameter; our kernels are the transposes."""
    everything = slice(None)
    found = {
        "ids/embedding": (model.items.weight, everything),
        "users/position/embedding": (model.position, everything),
        "users/norm/scale": (model.norm.weight, everything),
        "users/norm/bias": (model.norm.bias, everything),
    }
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        width = block.output.out_features
        for name, norm in (("attention_norm", block.attention_norm), ("ffn_norm", block.ffn_norm)):
            found[f"users/layer_{i}/{name}/scale"] = norm.weight, everything
            found[f"users/layer_{i}/{name}/bias"] = norm.bias, everything
        linear = {"attention/output": block.output, "ffn/up": block.up, "ffn/down": block.down}
        parts = [(name, layer, everything) for name, layer in linear.items()]
        for k, name in enumerate(("query", "key", "value")):
            parts.append((f"attention/{name}", block.qkv, slice(k * width, (k + 1) * width)))
        for name, layer, rows in parts:
            found[f"users/layer_{i}/{name}/kernel"] = layer.weight, rows
            found[f"users/layer_{i}/{name}/bias"] = layer.bias, rows
    return found
