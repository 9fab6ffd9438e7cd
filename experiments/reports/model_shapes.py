"""Fields of `config.json` of well-known language models, by name: enough to count and compile them without weights."""

from typing import Any

_QWEN = {"model_type": "qwen2", "rope_theta": 1e6, "max_position_embeddings": 32768}
_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "intermediate_size": 8192,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": True,
}
_SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def _sized(
    family: dict[str, Any], width: int, layers: int, heads: int, key_value_heads: int, ffn: int, **more: Any
) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": ffn,
    }
    return {**family, **sizes, **more}


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": _sized(_SMOLLM2, 576, 30, 9, 3, 1536),
    "smollm2-360m": _sized(_SMOLLM2, 960, 32, 15, 5, 2560),
    "qwen2.5-0.5b": _sized(_QWEN, 896, 24, 14, 2, 4864, vocab_size=151936, tie_word_embeddings=True),
    "qwen2.5-1.5b": _sized(_QWEN, 1536, 28, 12, 2, 8960, vocab_size=151936, tie_word_embeddings=True),
    "qwen2.5-7b": _sized(_QWEN, 3584, 28, 28, 4, 18944, vocab_size=152064, tie_word_embeddings=False),
    "llama-3.2-1b": _sized(_LLAMA, 2048, 16, 32, 8, 8192, head_dim=64),
    "llama-3.2-3b": _sized(_LLAMA, 3072, 28, 24, 8, 8192, head_dim=128),
}
"""Shapes by name. An untied head has no part in vectors of texts and is not counted."""
