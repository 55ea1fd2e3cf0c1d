"""A GGUF's tokenizer as the text of a tokenizer.json, and its end tokens.

Two kinds are known. `gpt2` is byte-level BPE, cut into words by one of several expressions that `tokenizer.ggml.pre`
names. `llama` is SentencePiece's BPE: the pair of the highest score is joined first, and bytes without a token of their
own are spelled <0xNN>. The meaning of a name of `pre`: src/llama-vocab.cpp of llama.cpp.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.families.gguf.file import AGAIN, checked_value, shown
from merino_edge.storage.faults import one_line, shortened
from merino_runtime.errors import MerinoError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens
JOINED = (NORMAL, USER_DEFINED, UNUSED)
SPACE = "\u2581"  # SentencePiece's mark of a space

# Texts of tokens that end an answer: a GGUF names one end token, and a model of several may choose another.
END_TEXTS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|endoftext|>")
TEMPLATE_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
END_KEYS = ("eos", "eot", "eom")

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Words(NamedTuple):
    """How text is cut before its words are encoded.

    `expression`: None for GPT-2's own. `digits`: each digit is a word. `whole`: a word that is a token is taken as it
    is, whatever the merges. `composed`: whether the text is brought into the form NFC. `begins`: whether text begins
    with the bos token by default.
    """

    expression: str | None = None
    digits: bool = False
    whole: bool = False
    composed: bool = False
    begins: bool = False


LLAMA3 = Words(f"{CONTRACTIONS}|{REST % '{1,3}'}", whole=True, begins=True)
QWEN2 = Words(f"{CONTRACTIONS}|{REST % ''}", composed=True)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# By the names that share them, as llama.cpp groups them.
GROUPS: Mapping[str, Words] = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 olmo mpt jais"
    " gpt-neox granite-docling": Words(),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": Words(digits=True),
    "qwen2 deepseek-r1-qwen megrez kormo f2llmv2": QWEN2,
    "stablelm2": QWEN2._replace(composed=False),
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2": LLAMA3,
    "dbrx smaug-bpe": LLAMA3._replace(whole=False, begins=False),
    "gpt-4o llama4 kanana2": Words(GPT4O),
}  # fmt: skip
WORDS: Mapping[str, Words] = {name: words for names, words in GROUPS.items() for name in names.split()}


class Tokens(NamedTuple):
    """The lists of the metadata, checked to fit each other."""

    texts: list[str]
    kinds: Sequence[int]
    metadata: Mapping[str, Any]

    def id(self, name: str) -> int | None:
        """Return a special token by its name in the metadata, such as `bos`; None if there is none."""
        index = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.texts):
            raise MerinoError(
                f"the GGUF's tokenizer.ggml.{name}_token_id is {shown(index)}, allowed are 0 to {len(self.texts) - 1}"
            )
        return index

    def flag(self, name: str, default: bool) -> bool:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        return value if isinstance(value, bool) else default


def tokens_of(metadata: Mapping[str, Any]) -> Tokens:
    """Raise MerinoError if the file has no tokens, or lists that do not fit."""
    key = "tokenizer.ggml.tokens"
    texts = checked_value(metadata, key, of_strings, "a list of texts: a file without tokenizer cannot be exported")
    kinds = metadata.get("tokenizer.ggml.token_type", np.full(len(texts), NORMAL))
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(texts):
        raise MerinoError(
            f"the GGUF has {len(texts):,} tokens, and tokenizer.ggml.token_type has no entry for each. {AGAIN}"
        )
    return Tokens(texts, kinds.tolist(), metadata)


def of_strings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def tokenizer_json(metadata: Mapping[str, Any]) -> str:
    """Return the content of tokenizer.json. Raise MerinoError for a kind of tokenizer that is not known, by its name.
    """
    kind = checked_value(metadata, "tokenizer.ggml.model", lambda v: isinstance(v, str), f"one of {', '.join(MODELS)}")
    if kind not in MODELS:
        raise MerinoError(
            f"the GGUF's tokenizer is {shortened(repr(kind))}, known are {', '.join(MODELS)}: export the model from its"
            " Hugging Face folder"
        )
    tokens = tokens_of(metadata)
    vocabulary = {text: index for index, text in enumerate(tokens.texts)}
    if len(vocabulary) != len(tokens.texts):  # one of two could never be chosen
        twice = next(text for index, text in enumerate(tokens.texts) if vocabulary[text] != index)
        raise MerinoError(f"the GGUF has the token {shortened(repr(twice))} twice. {AGAIN}")
    try:
        tokenizer = MODELS[kind](tokens, vocabulary)
    except MerinoError:
        raise
    except Exception as error:  # `tokenizers` raises plain Exception
        raise MerinoError(f"the GGUF's tokens and merges do not fit: {one_line(error)}. {AGAIN}") from error
    added = [  # matched in a text before BPE
        AddedToken(tokens.texts[index], special=kind != USER_DEFINED, normalized=False)
        for index, kind in enumerate(tokens.kinds) if kind in (CONTROL, UNKNOWN, USER_DEFINED) and tokens.texts[index]
    ]  # fmt: skip
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    return str(tokenizer.to_str())


def byte_level(tokens: Tokens, vocabulary: dict[str, int]) -> Tokenizer:
    name = tokens.metadata.get("tokenizer.ggml.pre", "missing")
    if name not in WORDS:
        raise MerinoError(
            f"the GGUF's tokenizer.ggml.pre is {shortened(repr(name))}, known are {', '.join(WORDS)}: how it cuts text"
            " into words is not known. Export the model from its Hugging Face folder"
        )
    words = WORDS[name]
    merges = checked_value(tokens.metadata, "tokenizer.ggml.merges", of_strings, "a list of texts")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=words.whole))
    if words.composed:
        tokenizer.normalizer = normalizers.NFC()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words.expression is None)
    cut: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if words.digits else []
    if words.expression:
        cut = [pre_tokenizers.Split(Regex(words.expression), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_bytes]) if cut else to_bytes
    tokenizer.decoder = decoders.ByteLevel()
    prepend_bos(tokenizer, tokens, words.begins)
    return tokenizer


def sentence_piece(tokens: Tokens, vocabulary: dict[str, int]) -> Tokenizer:
    scores = tokens.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens.texts) or scores.dtype.kind != "f":
        raise MerinoError(
            f"the GGUF has {len(tokens.texts):,} tokens, and tokenizer.ggml.scores has none for each. {AGAIN}"
        )
    unknown, spaced = tokens.id("unknown"), tokens.flag("add_space_prefix", True)
    tokenizer = Tokenizer(models.BPE(
        vocab=vocabulary, merges=merges_of(tokens, scores.tolist()), fuse_unk=True, byte_fallback=True,
        unk_token=None if unknown is None else tokens.texts[unknown],
    ))  # fmt: skip
    to_marks, to_spaces = normalizers.Replace(" ", SPACE), decoders.Replace(SPACE, " ")
    tokenizer.normalizer = normalizers.Sequence([*[normalizers.Prepend(SPACE)] * spaced, to_marks])
    without_first = [decoders.Strip(" ", 1, 0)] * spaced
    tokenizer.decoder = decoders.Sequence([to_spaces, decoders.ByteFallback(), decoders.Fuse(), *without_first])
    prepend_bos(tokenizer, tokens, True)
    return tokenizer


def prepend_bos(tokenizer: Tokenizer, tokens: Tokens, default: bool) -> None:
    """Put the bos token before each text if the file's tokenizer adds one."""
    bos = tokens.id("bos")
    if bos is not None and tokens.flag("add_bos_token", default):
        text = tokens.texts[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[text, "$A"], pair=[text, "$A", "$B:1"], special_tokens=[(text, bos)]
        )


def merges_of(tokens: Tokens, scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return the pairs that make a token, of the highest score first: SentencePiece joins whichever pair gives it.

    Spaces have become marks before anything is joined. Tokens with plain spaces, as Gemma's runs of them, are matched
    in the text before.
    """
    joined = {
        text: index for index, text in enumerate(tokens.texts) if tokens.kinds[index] in JOINED and " " not in text
    }
    pairs = [
        (-scores[index], index, text[:cut], text[cut:])
        for text, index in joined.items() for cut in range(1, len(text))
        if text[:cut] in joined and text[cut:] in joined
    ]  # fmt: skip
    return [(left, right) for _, _, left, right in sorted(pairs)]


MODELS: Mapping[str, Callable[[Tokens, dict[str, int]], Tokenizer]] = {"gpt2": byte_level, "llama": sentence_piece}


def stop_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Return ids that end an answer: those that the metadata names, then special tokens with a text of END_TEXTS."""
    tokens = tokens_of(metadata)
    named = [tokens.id(name) for name in END_KEYS]
    by_text = [index for index, text in enumerate(tokens.texts) if text in END_TEXTS and tokens.kinds[index] != NORMAL]
    return list(dict.fromkeys([token_id for token_id in named if token_id is not None] + by_text))


def chat_template(metadata: Mapping[str, Any], source: str) -> ChatTemplate | None:
    """None for a file without one, whose model is no chat model. `source`: the file, for messages."""
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        return None
    tokens = tokens_of(metadata)
    ids = {f"{name}_token": tokens.id(metadata_name) for name, metadata_name in TEMPLATE_TOKENS.items()}
    spelled = {name: tokens.texts[index] for name, index in ids.items() if index is not None}
    return ChatTemplate(template, spelled, f"tokenizer.chat_template in {source}")
