"""A random Llama with a tokenizer of words, and the prompt of the task in `rating` that it reads."""

import string
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.helpers import tiny

WORDS = [*tiny.COLOURS, *tiny.THINGS, *["Liked", "Disliked", "Next", "Answer", "Yes", "No", ":", ";", ".", "?"]]
WORDS += string.ascii_uppercase[:20]
TEMPLATE = "Liked: {liked}. Disliked: {disliked}. Next: {target}? Answer:"


def llama_folder(place: Path) -> Path:
    """Writes model and tokenizer to a folder, and returns that."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        place
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=96, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place
