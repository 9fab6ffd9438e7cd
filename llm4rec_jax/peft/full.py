"""Every parameter is trained."""

import jax

from llm4rec_jax.peft.core import METHODS, Delta, Params, Peft, match, replace, sites


@METHODS.register("full")
def full(target: str = r".*") -> Peft:
    """Full fine-tuning: the delta is a copy of the arrays of the sites that match, and takes their place."""

    def init(key: jax.Array, params: Params) -> Delta:
        modules = sites(params)
        holders = [s for s, m in modules.items() if any(isinstance(a, jax.Array) for a in m.values())]
        return {
            site: {name: a.copy() for name, a in modules[site].items() if isinstance(a, jax.Array)}
            for site in match(target, holders)
        }

    return Peft(init, reparam=replace, merge=replace)
