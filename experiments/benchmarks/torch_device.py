"""The device of the torch side of a benchmark, that of jax, and the type that it computes in."""

from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def put(array: np.ndarray) -> Tensor:
    """On the device."""
    return torch.from_numpy(array).to(DEVICE)


def get(tensor: Tensor) -> np.ndarray:
    """Returns an array of the device on the host, in float32."""
    return tensor.detach().float().cpu().numpy()


def computing_in(dtype: str) -> Any:
    """Parameters in float32, what is computed with them in `dtype`: torch's automatic mixed precision."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype != "float32")


def wait() -> None:
    """Returns when the device has done what it was given; a CPU has."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
