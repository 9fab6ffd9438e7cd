"""User models: each profile reads the history up to its position and nothing else, as the papers' equations have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm4rec_jax.models.graphs.base import GRAPHS, Edges, GraphItems, GraphUsers
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.models.users.base import USERS, UserEncoder, UserInputs, at_last_position

B, H, D = 5, 7, 8
RNG = np.random.default_rng(0)
ITEMS = RNG.normal(size=(B, H, D)).astype(np.float32)
LENGTHS = np.array([7, 4, 1, 0, 6])
MASK = np.arange(H) < LENGTHS[:, None]

every_model = pytest.mark.parametrize("name", sorted(name for name, m in USERS.items() if m.inputs == "history"))


def build(name: str, seed: int = 1, **options):
    """The model with all parameters random, biases and norms included."""
    module = USERS.build(name, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), UserInputs(ITEMS, MASK)).get("params", {})
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0.0, 0.4, s.shape), s.dtype), shapes)
    return module, {"params": params}


def run(name: str, items=ITEMS, mask=MASK, **options) -> np.ndarray:
    module, params = build(name, **options)
    return np.asarray(module.apply(params, UserInputs(items, mask)))


@every_model
def test_causal(name):
    before = run(name)
    for t in range(H - 1):
        after = run(name, np.where(np.arange(H)[:, None] > t, ITEMS[::-1], ITEMS))
        np.testing.assert_array_equal(after[:, : t + 1][MASK[:, : t + 1]], before[:, : t + 1][MASK[:, : t + 1]])
        assert np.abs(after - before)[0, t + 1 :].max(-1).min() > 1e-3


@every_model
def test_every_item_so_far_is_read(name):
    # Row 0 is full: the profile at the end depends on each of its items.
    module, params = build(name)
    grads = jax.grad(
        lambda items: (module.apply(params, UserInputs(items, MASK))[0, -1] * jnp.arange(1.0, D + 1)).sum()
    )(ITEMS)
    assert (np.abs(grads[0]).max(-1) > 1e-6).all()
    assert not np.asarray(grads[1:]).any()


@every_model
def test_a_prefix_of_a_history_has_its_profile(name):
    # One pass can train on every position, because embedding t is that of a history cut after t.
    t = 4
    cut, real = run(name, ITEMS[:, : t + 1], MASK[:, : t + 1]), MASK[:, t]
    np.testing.assert_allclose(cut[real, -1], run(name)[real, t], atol=1e-5)


@every_model
def test_padding_does_not_matter(name):
    before = at_last_position(run(name), MASK)
    padded = np.where(MASK[..., None], ITEMS, 9.0)
    after = run(name, padded)
    np.testing.assert_array_equal(after[MASK], run(name)[MASK])
    np.testing.assert_array_equal(at_last_position(after, MASK), before)
    longer = run(name, np.pad(padded, ((0, 0), (0, 2), (0, 0)), constant_values=5.0), np.pad(MASK, ((0, 0), (0, 2))))
    np.testing.assert_allclose(longer[:, :H][MASK], run(name)[MASK], atol=1e-5)


@every_model
def test_an_empty_history_is_zero_with_finite_gradients(name):
    module, params = build(name)

    def loss(params, items):
        user_embeddings = at_last_position(module.apply(params, UserInputs(items, MASK)), MASK)
        return (user_embeddings * jnp.arange(1.0, D + 1)).sum(), user_embeddings

    grads, user_embeddings = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, ITEMS)
    assert np.isfinite(user_embeddings).all()
    assert not np.asarray(user_embeddings)[3].any()
    assert np.abs(np.asarray(user_embeddings)[LENGTHS > 0]).max(-1).min() > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert not np.asarray(grads[1])[~MASK].any()


@every_model
def test_no_history_at_all_is_finite(name):
    assert np.isfinite(run(name, mask=np.zeros_like(MASK))).all()


def test_at_last_position():
    user_embeddings = np.arange(B * H * D, dtype=np.float32).reshape(B, H, D) + 1
    want = np.stack([p[n - 1] if n else np.zeros(D) for p, n in zip(user_embeddings, LENGTHS, strict=True)])
    np.testing.assert_array_equal(at_last_position(user_embeddings, MASK), want)
    np.testing.assert_array_equal(at_last_position(user_embeddings, MASK.astype(np.int32)), want)


def test_mean_against_numpy():
    ours = run("mean")
    for b in range(B):
        for t in range(LENGTHS[b]):
            np.testing.assert_allclose(ours[b, t], ITEMS[b, : t + 1].mean(0), atol=1e-6)


def test_two_tower_against_torch():
    module, variables = build("two_tower", hidden=5)
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), variables["params"])
    mean = torch.tensor(ITEMS).cumsum(1) / torch.arange(1.0, H + 1)[:, None]
    x = torch.nn.functional.layer_norm(mean, (D,), p["norm"]["scale"], p["norm"]["bias"], 1e-6)
    x = torch.nn.functional.gelu(x @ p["hidden"]["kernel"] + p["hidden"]["bias"], approximate="tanh")
    want = (x @ p["output"]["kernel"] + p["output"]["bias"]).numpy()
    np.testing.assert_allclose(module.apply(variables, UserInputs(ITEMS, MASK))[MASK], want[MASK], atol=1e-5)


def test_attention_against_numpy():
    module, variables = build("attention", hidden=5)
    p = jax.tree.map(np.asarray, variables["params"])
    w, b, q = p["hidden"]["kernel"], p["hidden"]["bias"], p["query"]["kernel"][:, 0]
    assert (w.shape, b.shape, q.shape) == ((D, 5), (5,), (5,))
    ours = at_last_position(module.apply(variables, UserInputs(ITEMS, MASK)), MASK)
    for row, items, n in zip(ours, ITEMS, LENGTHS, strict=True):
        a = np.exp(np.tanh(items[:n] @ w + b) @ q)
        np.testing.assert_allclose(row, a / a.sum() @ items[:n] if n else np.zeros(D), atol=1e-5)


def test_gru_against_torch():
    module, variables = build("gru")
    (cell,) = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), variables["params"]).values()
    gru = torch.nn.GRU(D, D, batch_first=True)
    with torch.no_grad():
        gru.weight_ih_l0.copy_(torch.cat([cell[f"i{g}"]["kernel"].T for g in "rzn"]))
        gru.weight_hh_l0.copy_(torch.cat([cell[f"h{g}"]["kernel"].T for g in "rzn"]))
        gru.bias_ih_l0.copy_(torch.cat([cell[f"i{g}"]["bias"] for g in "rzn"]))
        # Only the candidate's bias of the state is separate from that of the input.
        gru.bias_hh_l0.copy_(torch.cat([torch.zeros(2 * D), cell["hn"]["bias"]]))
        want = gru(torch.tensor(ITEMS))[0].numpy()
    np.testing.assert_allclose(module.apply(variables, UserInputs(ITEMS, MASK))[MASK], want[MASK], atol=1e-5)


def torch_transformer(params, layers: int, heads: int, ffn: int) -> tuple[torch.nn.Module, dict]:
    """torch's pre-norm encoder with our parameters, and the parameters as tensors."""
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params)
    # Our GELU is the tanh approximation; flax's norms have epsilon 1e-6.
    layer = torch.nn.TransformerEncoderLayer(
        D, heads, ffn * D, 0.0, lambda x: torch.nn.functional.gelu(x, approximate="tanh"), 1e-6, True, norm_first=True
    )
    model = torch.nn.TransformerEncoder(layer, layers, torch.nn.LayerNorm(D, 1e-6), enable_nested_tensor=False)
    state = {"norm.weight": p["norm"]["scale"], "norm.bias": p["norm"]["bias"]}
    for i in range(layers):
        ours, at = p[f"layer_{i}"], f"layers.{i}."
        qkv = [ours["attention"][name] for name in ("query", "key", "value")]
        state |= {
            f"{at}self_attn.in_proj_weight": torch.cat([m["kernel"].T for m in qkv]),
            f"{at}self_attn.in_proj_bias": torch.cat([m["bias"] for m in qkv]),
        }
        for name, m in (
            ("self_attn.out_proj", ours["attention"]["output"]),
            ("linear1", ours["ffn"]["up"]),
            ("linear2", ours["ffn"]["down"]),
        ):
            state |= {f"{at}{name}.weight": m["kernel"].T, f"{at}{name}.bias": m["bias"]}
        for name, m in (("norm1", ours["attention_norm"]), ("norm2", ours["ffn_norm"])):
            state |= {f"{at}{name}.weight": m["scale"], f"{at}{name}.bias": m["bias"]}
    model.load_state_dict(state)
    return model, p


@pytest.mark.parametrize("heads", [1, 2])
def test_transformer_against_torch(heads):
    module, variables = build("transformer", layers=2, heads=heads, ffn=3, positions=9)
    model, p = torch_transformer(variables["params"], 2, heads, 3)
    with torch.no_grad():
        x = torch.tensor(ITEMS) + p["position"]["embedding"][:H]
        later = torch.triu(torch.ones(H, H, dtype=torch.bool), 1)
        want = model(x, later).numpy()
    np.testing.assert_allclose(module.apply(variables, UserInputs(ITEMS, MASK))[MASK], want[MASK], atol=1e-5)


def test_bert4rec_against_torch():
    module, variables = build("bert4rec", layers=2, heads=2, ffn=3, positions=9)
    model, p = torch_transformer(variables["params"], 2, 2, 3)
    hidden = MASK & (RNG.random(MASK.shape) < 0.4)
    hidden[0, -1] = True
    weights = RNG.normal(size=(B, H, D)).astype(np.float32)
    items = torch.tensor(ITEMS, requires_grad=True)

    def theirs(items: torch.Tensor, mask: np.ndarray, hidden: np.ndarray) -> torch.Tensor:
        x = (
            torch.where(torch.tensor(hidden)[..., None], p["hidden"], items)
            + p["position"]["embedding"][: mask.shape[1]]
        )
        return model(x, src_key_padding_mask=torch.tensor(~mask))

    real = LENGTHS > 0
    want = theirs(items[real], MASK[real], hidden[real])
    ours = module.apply(variables, UserInputs(ITEMS, MASK, hidden))
    np.testing.assert_allclose(ours[real][MASK[real]], want.detach().numpy()[MASK[real]], atol=1e-5)
    (want * torch.tensor(weights * MASK[..., None])[real]).sum().backward()
    grads = jax.grad(
        lambda x: (module.apply(variables, UserInputs(x, MASK, hidden)) * weights * MASK[..., None]).sum()
    )(ITEMS)
    assert items.grad is not None
    np.testing.assert_allclose(grads, items.grad.numpy(), atol=1e-4)

    # In use, one hidden position behind the history says who the user is.
    user_embeddings = module.apply(variables, UserInputs(ITEMS, MASK))
    assert user_embeddings.shape == (B, H, D)
    for row, n in zip(range(B), LENGTHS, strict=True):
        behind = np.pad(ITEMS[row : row + 1, :n], ((0, 0), (0, 1), (0, 0)))
        with torch.no_grad():
            x = theirs(torch.tensor(behind), np.ones((1, n + 1), bool), np.arange(n + 1)[None] == n)
        np.testing.assert_allclose(user_embeddings[row], np.tile(x[0, -1].numpy(), (H, 1)), atol=1e-5)


def test_a_hidden_item_is_not_read():
    module, variables = build("bert4rec")
    hidden = np.zeros_like(MASK)
    hidden[:, 2] = True
    other = np.where(np.arange(H)[:, None] == 2, ITEMS + 1, ITEMS)
    np.testing.assert_array_equal(
        module.apply(variables, UserInputs(other, MASK, hidden)),
        module.apply(variables, UserInputs(ITEMS, MASK, hidden)),
    )


@pytest.mark.parametrize("entities", [0, 4])
def test_lightgcn_against_matrices(entities):
    users, items, layers = 6, 9, 3
    pairs = np.unique(RNG.integers(0, (users - 1, items), (20, 2)), axis=0)  # the last user has no interaction
    facts = np.unique(RNG.integers(0, (items, entities or 1), (12, 2)), axis=0) if entities else None
    twice = np.concatenate([pairs, pairs[:3]])
    edges = Edges(twice[:, 0], twice[:, 1], None if facts is None else np.concatenate([facts, facts[:2]]).T)
    graph = GRAPHS.build("lightgcn", num_users=users, num_items=items, width=D, edges=edges, layers=layers)
    of_users, of_items, rows, all_items = GraphUsers(graph), GraphItems(graph), np.array([0, 3, 3, 5]), np.arange(items)
    variables = of_users.init(jax.random.key(0), UserInputs(users=rows))
    # Users and items draw the same tables from the same key.
    jax.tree.map(np.testing.assert_array_equal, variables, of_items.init(jax.random.key(0), all_items))

    def vectors(variables):
        return of_users.apply(variables, UserInputs(users=rows))[:, 0], of_items.apply(variables, all_items)

    nodes = users + items + edges.num_entities
    adjacency = np.zeros((nodes, nodes), np.float32)
    adjacency[pairs[:, 0], users + pairs[:, 1]] = adjacency[users + pairs[:, 1], pairs[:, 0]] = 1
    if facts is not None:
        about, what = users + facts[:, 0], users + items + facts[:, 1]
        adjacency[about, what] = adjacency[what, about] = 1
    scale = 1 / np.sqrt(np.maximum(adjacency.sum(1), 1))
    step = torch.tensor(scale[:, None] * adjacency * scale)
    names = ("user", "item", *(("entity",) if entities else ()))
    table = torch.tensor(np.concatenate([variables["params"][name] for name in names]), requires_grad=True)
    layer, total = table, table
    for _ in range(layers):
        layer = step @ layer
        total = total + layer
    want, shown = total / (layers + 1), slice(users, users + items)
    ours = vectors(variables)
    np.testing.assert_allclose(ours[0], want[rows].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(ours[1], want[shown].detach().numpy(), atol=1e-6)
    torch.sin(want[rows] @ want[shown].T).sum().backward()

    def loss(variables):
        user_vectors, item_vectors = vectors(variables)
        return jnp.sin(user_vectors @ item_vectors.T).sum()

    grads = jax.grad(loss)(variables)["params"]
    assert table.grad is not None
    np.testing.assert_allclose(np.concatenate([grads[name] for name in names]), table.grad.numpy(), atol=1e-5)


def test_a_user_encoder_of_ones_own_is_one_class(monkeypatch):
    class LastItem(UserEncoder):
        def __call__(self, inputs: UserInputs) -> jax.Array:
            return inputs.history

    monkeypatch.setitem(USERS, "last_item", LastItem)
    model = recommender(num_items=6, users="last_item", width=4)
    params = init(model, jax.random.key(0))
    items = params["ids"]["embedding"]
    inputs = UserInputs(items[np.array([[3, 5, 0]])], np.array([[1, 1, 0]]))
    embeddings = model.matcher.apply({"params": params}, inputs, method="user_embeddings")
    np.testing.assert_array_equal(at_last_position(embeddings, inputs.history_mask), items[5:])


@pytest.mark.parametrize("name", ["transformer", "gru", "two_tower"])
def test_dropout_needs_a_dropout_rng(name):
    module, params = build(name, dropout=0.5)
    apply = jax.jit(lambda key: module.apply(params, UserInputs(ITEMS, MASK), rngs={"dropout": key}))
    np.testing.assert_array_equal(module.apply(params, UserInputs(ITEMS, MASK)), run(name, dropout=0.0))
    first, again, other = (np.asarray(apply(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other)[MASK].max() > 0.1


def test_a_history_longer_than_the_positions():
    with pytest.raises(ValueError, match="a history of 7 items, but the user model has 6 positions"):
        build("transformer", positions=6)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="the width 8 is not a multiple of 3 heads"):
        build("transformer", heads=3)
