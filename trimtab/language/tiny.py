"""Tiny models and tokenizers, made here: what the tests, the test beds and a first try need in place of a download."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word; words are separated by blanks. Ids: the four special tokens, then `words` in their order."""
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _wrapped(inner)


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, *characters)))}
    inner = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    return _wrapped(inner)


def _wrapped(inner: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    positions: int = 128,
    seed: int = 0,
    spread: float = 0.08,
) -> LlamaForCausalLM:
    """A Llama of `layers` blocks with untied embeddings, normal weights of standard deviation `spread`, no dropout."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config(tokenizer, width, layers, heads, positions, spread))


def tiny_scorer(
    tokenizer: PreTrainedTokenizerFast,
    width: int = 64,
    layers: int = 1,
    heads: int = 4,
    positions: int = 128,
    seed: int = 0,
    spread: float = 0.08,
) -> LlamaForSequenceClassification:
    """The same with one number in place of the vocabulary: a reward model, read at the last token."""
    torch.manual_seed(seed)
    config = _config(tokenizer, width, layers, heads, positions, spread)
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def tiny_gpt2(
    tokenizer: PreTrainedTokenizerFast,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    positions: int = 128,
    seed: int = 0,
    spread: float = 0.08,
) -> GPT2LMHeadModel:
    """The same in GPT-2's form: layer norms, learned positions, untied embeddings.

    At random weights it takes like texts for alike: the last hidden states of sentences that differ in a word or two
    have a cosine of about 0.8, against 0.2 of the Llama.
    """
    torch.manual_seed(seed)
    ids = tokenizer.get_vocab()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_inner=2 * width,
        n_layer=layers,
        n_head=heads,
        n_positions=positions,
        activation_function="gelu",
        initializer_range=spread,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )
    return GPT2LMHeadModel(config)


def _config(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: int, heads: int, positions: int, spread: float
) -> LlamaConfig:
    ids = tokenizer.get_vocab()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=positions,
        initializer_range=spread,
        tie_word_embeddings=False,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Writes both as a model folder that every Hugging Face tool loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
