"""The configuration that every study starts from: all keys at their defaults.

`llm4rec_jax/runs/schema.py` declares each key with its type, range and meaning. A study changes what it needs:

    from configs import base

    def get_config(arg="lora"):
        config = base.get_config()
        config.peft.method = arg
        return config
"""

from ml_collections import ConfigDict

from llm4rec_jax.runs.schema import default_config


def get_config() -> ConfigDict:
    """Returns the configuration of every default."""
    return default_config()
