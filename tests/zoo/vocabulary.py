"""The zoo's two tokenizers, trained on the world's text."""

from __future__ import annotations

import math
from collections import Counter

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from zoo import world
from zoo.lessons import PREFIXES

SIZE = 720
END = "<|endoftext|>"
SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
CONTEXT_LENGTH = 256


def text() -> list[str]:
    """What both tokenizers are trained on."""
    taught = [world.in_context(case.edit, case.probes[0].prompt) for case in world.cases("train")]
    return world.corpus() + taught + list(PREFIXES)


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's: no token is added to a text, ``<|endoftext|>`` ends one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=CONTEXT_LENGTH,
    )


def unigram(*, t5: bool) -> PreTrainedTokenizerFast:
    """Unigram over ``▁`` words; T5's adds ``</s>``, LLaMA's begins with ``<s>``.

    Punctuation and line breaks are pieces of their own, so a word looks the same before them. The
    pieces are those a BPE finds, scored by how often it uses them: the library's own Unigram
    trainer counts every distinct word once, which leaves too few pieces on a text this small.
    """
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[.,:;!?\n]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=SPECIAL, show_progress=False)
    pieces.train_from_iterator(text(), trainer)
    seen = Counter(token for line in text() for token in pieces.encode(line).tokens)
    total = sum(seen.values()) + SIZE
    order = sorted(pieces.get_vocab(), key=pieces.get_vocab().__getitem__)
    scored = [(token, math.log((seen[token] + 1) / total)) for token in order]
    core = Tokenizer(models.Unigram(scored, unk_id=SPECIAL.index("<unk>")))
    core.add_special_tokens(SPECIAL)
    core.pre_tokenizer = pieces.pre_tokenizer
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    single, token = ("$A </s>", "</s>") if t5 else ("<s> $A", "<s>")
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, SPECIAL.index(token))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CONTEXT_LENGTH,
        **({} if t5 else {"bos_token": "<s>"}),
    )
