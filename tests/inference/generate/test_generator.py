"""Generation against transformers' `generate`, token by token; cached logits against those of a whole text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llm4rec_jax import peft
from llm4rec_jax.inference.generate import Generated, Generator
from llm4rec_jax.inference.generate.beams import Beams
from llm4rec_jax.inference.generate.cached import CachedDecoder, padded_mask
from llm4rec_jax.inference.generate.choosing import Sampling
from llm4rec_jax.models.encoders.bert import Bert, BertConfig
from llm4rec_jax.peft.core import forward
from tests.helpers import tiny
from tests.models.decoders.parity import Pair, draw_ids, make_pair
from tests.models.decoders.test_families import CASES

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STEPS, PAD = 7, 5
MASK = np.arange(7) >= np.array([0, 2, 5])[:, None]  # padded on the left
QUICK = ("llama, grouped", "gemma2", "gpt2")
MORE_BEAMS = (Beams(3), Beams(2, 1.8, early_stopping=True))
CAUSAL = [name for name, (_, fields) in CASES.items() if not fields.get("use_bidirectional_attention")]
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CAUSAL]

READ_QUICKLY = ("lora", "prefix", "side", "prompt", "k_adapter")
METHODS = [name if name in READ_QUICKLY else pytest.param(name, marks=pytest.mark.long) for name in peft.METHODS]


def pair_of(name: str, folder: Any) -> Pair:
    model_type, fields = CASES[name]
    return make_pair(CONFIG_MAPPING[model_type](**{**TOKENS, **fields}), folder)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of("llama, grouped", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair_of("llama 3, biased", tmp_path_factory.mktemp("biased"))


def theirs(pair: Pair, ids: np.ndarray, mask: np.ndarray, steps: int = STEPS, **options: Any) -> Any:
    options = {"do_sample": False, "max_new_tokens": steps, "pad_token_id": PAD, "eos_token_id": 2, **options}
    return pair.torch.generate(
        input_ids=torch.tensor(ids),
        attention_mask=torch.tensor(mask.astype(int)),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


def same_tokens(ours: Any, wanted: torch.Tensor, length: int) -> None:
    new = wanted.numpy()[:, length:]
    ours = np.asarray(ours).reshape(len(new), -1)
    np.testing.assert_array_equal(ours[:, : new.shape[1]], new)
    assert (ours[:, new.shape[1] :] == PAD).all()


def test_greedy_texts_are_those_of_transformers(pair):
    ids = draw_ids(41, MASK)
    ours = Generator(pair.decoder, pad_token=PAD).greedy((pair.params, {}), ids, MASK, STEPS)
    wanted = theirs(pair, ids, MASK)
    same_tokens(ours.ids, wanted.sequences, MASK.shape[1])
    likelihoods = pair.torch.compute_transition_scores(wanted.sequences, wanted.scores, normalize_logits=True)
    written = np.arange(likelihoods.shape[1]) < np.asarray(ours.lengths)[:, None]
    np.testing.assert_allclose(ours.scores, np.where(written, likelihoods, 0).sum(1), rtol=2e-5)


@pytest.mark.parametrize(
    "beams", [Beams(4, -0.7), *(pytest.param(beams, marks=pytest.mark.long) for beams in MORE_BEAMS)]
)
def test_beams_are_those_of_transformers(pair, beams):
    ids = draw_ids(41, MASK, seed=3)
    ours = Generator(pair.decoder, pad_token=PAD).beam_search((pair.params, {}), ids, MASK, STEPS, beams)
    wanted = theirs(
        pair, ids, MASK, num_beams=beams.num_beams, num_return_sequences=beams.num_beams,
        length_penalty=beams.length_penalty, early_stopping=beams.early_stopping,
    )  # fmt: skip
    same_tokens(ours.ids, wanted.sequences, MASK.shape[1])
    np.testing.assert_allclose(np.asarray(ours.scores).ravel(), wanted.sequences_scores, rtol=3e-5)


def test_texts_end_early_and_the_rest_is_padding(llama):
    ids = draw_ids(41, MASK)
    plain = np.asarray(Generator(llama.decoder, stop_tokens=()).greedy((llama.params, {}), ids, MASK, STEPS).ids)
    stop = int(plain[0, 2])
    ours = Generator(llama.decoder, stop_tokens=(stop, 40), pad_token=PAD).greedy((llama.params, {}), ids, MASK, STEPS)
    same_tokens(ours.ids, theirs(llama, ids, MASK, eos_token_id=[stop, 40]).sequences, MASK.shape[1])
    assert int(ours.lengths[0]) == list(plain[0]).index(stop) + 1
    assert (np.asarray(ours.ids)[0, int(ours.lengths[0]) :] == PAD).all()


def test_the_side_of_padding_does_not_matter(llama):
    left = draw_ids(41, MASK)
    lengths = MASK.sum(1)
    right = np.stack([np.roll(row, n) for row, n in zip(left, lengths, strict=True)])
    generator = Generator(llama.decoder)
    one = generator.greedy((llama.params, {}), left, MASK, STEPS)
    other = generator.greedy((llama.params, {}), right, np.arange(7) < lengths[:, None], STEPS)
    np.testing.assert_array_equal(one.ids, other.ids)


def in_parts(model: CachedDecoder, weights: Any, ids: np.ndarray, mask: np.ndarray, parts: tuple[int, ...]) -> Any:
    cache, states, at = model.start(*ids.shape), [], 0
    for size in parts:
        slots = padded_mask(mask[:, : at + size], ids.shape[1])
        part, cache = model.read(weights, cache, jnp.asarray(ids[:, at : at + size]), slots)
        states.append(part)
        at += size
    return model.logits(weights, jnp.concatenate(states, axis=1))


@pytest.mark.long
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_with_a_cache_are_those_without(pair, side):
    mask = MASK if side == "left" else MASK[:, ::-1]
    ids = draw_ids(41, mask)
    variables = {"params": pair.params}
    whole = pair.decoder.apply(variables, ids, mask)
    wanted = np.asarray(pair.decoder.apply(variables, whole, method="logits"))
    ours = in_parts(CachedDecoder(pair.decoder, peft.create("frozen")), (pair.params, {}), ids, mask, (4, 1, 2))
    np.testing.assert_allclose(np.asarray(ours)[mask], wanted[mask], atol=1e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_reads_in_parts_or_is_refused(biased, name):
    method = tiny.method(name, None)
    if name in ("prompt", "k_adapter"):
        with pytest.raises(ValueError, match=f"{name} (puts tokens in front|lets tokens read later ones)"):
            CachedDecoder(biased.decoder, method)
        return
    delta = method.init(jax.random.key(0), biased.params)
    rng = np.random.default_rng(0)
    delta = jax.tree.map(lambda a: a + jnp.asarray(0.05 * rng.normal(size=a.shape), a.dtype), delta)
    mask, weights = MASK[:2], (biased.params, delta)
    ids = draw_ids(41, mask)
    states = forward(biased.decoder, method, *weights, ids, mask)
    wanted = np.asarray(forward(biased.decoder, method, *weights, states, apply="logits"))
    model = CachedDecoder(biased.decoder, method)
    ours = np.asarray(in_parts(model, model.fold(weights), ids, mask, (5, 2)))
    np.testing.assert_allclose(ours[mask], wanted[mask], atol=1e-5 * np.abs(wanted).max(), rtol=0)


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7), Sampling(1.3, top_k=5), Sampling(top_p=0.8), Sampling(0.9, top_k=9, top_p=0.6)]
)
def test_scores_of_sampling_are_those_of_transformers(sampling):
    logits = np.random.default_rng(0).normal(0, 3, (6, 50)).astype(np.float32)
    wanted = TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k is not None:
        wanted = TopKLogitsWarper(sampling.top_k)(None, wanted)
    if sampling.top_p is not None:
        wanted = TopPLogitsWarper(sampling.top_p)(None, wanted)
    np.testing.assert_allclose(sampling.scores(jnp.asarray(logits)), wanted, rtol=1e-6)


def test_tokens_are_drawn_by_their_probabilities(llama):
    ids = np.repeat(draw_ids(41, MASK[:1]), 600, axis=0)
    generator, weights, sampling = Generator(llama.decoder), (llama.params, {}), Sampling(1.5, top_k=6)

    def draw(key: int) -> Generated:
        return generator.sample(weights, ids, ids > 0, 1, jax.random.key(key), sampling)

    drawn = draw(0)
    states = llama.decoder.apply({"params": llama.params}, ids[:1], ids[:1] > 0)
    logits = llama.decoder.apply({"params": llama.params}, states[0, -1], method="logits")
    wanted = np.asarray(jax.nn.softmax(sampling.scores(logits)))
    shares = np.bincount(np.asarray(drawn.ids)[:, 0], minlength=41) / 600
    assert np.abs(shares - wanted).max() < 4 * 0.5 / 600**0.5
    assert not shares[wanted == 0].any()
    np.testing.assert_array_equal(draw(0).ids, drawn.ids)
    assert (np.asarray(draw(1).ids) != np.asarray(drawn.ids)).any()


def test_misuse(llama, tmp_path):
    weights, ids = (llama.params, {}), draw_ids(41, MASK)
    generator = Generator(llama.decoder)
    with pytest.raises(ValueError, match="bert reads texts in both directions"):
        Generator(Bert(BertConfig(model_type="bert")))
    with pytest.raises(ValueError, match="gemma3_text reads texts in both directions"):
        Generator(pair_of("gemma3, bidirectional", tmp_path).decoder)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generator.greedy(weights, ids, MASK, 0)
    with pytest.raises(ValueError, match="a real token in each row"):
        generator.greedy(weights, ids, np.zeros_like(MASK), 1)
    with pytest.raises(ValueError, match="the number of beams is 21, must be between 1 and 20"):
        generator.beam_search(weights, ids, MASK, 1, Beams(21))
    for sampling, words in (
        (Sampling(0.0), "temperature is 0"),
        (Sampling(top_k=0), "top_k"),
        (Sampling(top_p=2), "top_p"),
    ):
        with pytest.raises(ValueError, match=words):
            generator.sample(weights, ids, MASK, 1, jax.random.key(0), sampling)


def test_a_text_longer_than_the_positions_is_refused(tmp_path):
    gpt2 = pair_of("gpt2", tmp_path)
    ids = draw_ids(41, MASK)
    with pytest.raises(ValueError, match="33 tokens, but the encoder has 32 positions"):
        Generator(gpt2.decoder).greedy((gpt2.params, {}), ids, MASK, 26)
    prefix = peft.create("prefix", {"prefix": {"length": 4}})
    weights = gpt2.params, prefix.init(jax.random.key(0), gpt2.params)
    with pytest.raises(ValueError, match="29 tokens after a prefix of 4 need 33 positions"):
        Generator(gpt2.decoder, prefix).greedy(weights, ids, MASK, 22)
