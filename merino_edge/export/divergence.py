"""KL divergence of a bundle from its model in float32, measured on the model's own answers.

The model answers short questions greedily in torch, in float32, with the weights of the source. Then the bundle
prefills each answer in the board's runtime, and its distribution at each token is compared with torch's. An answer is
kept if the bundle would have written the same tokens. It counts as kept too if the first token that differs is
nearly tied in float32: there the argmax depends on more than the format.

A quantized KV cache is judged alone too, before anything is written: by the float32 model over a rounded cache, in
torch.
"""

from collections.abc import Iterable, Sequence
from contextlib import closing
from importlib.resources import files
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from merino_edge.export.parity import RoundedCache
from merino_edge.export.quantize.kv_cache import CacheScales
from merino_edge.export.source import Source, not_finite, tokenizer_of
from merino_edge.text.scoring import logits_behind
from merino_runtime.backends import open_backend
from merino_runtime.bundle import Bundle
from merino_runtime.chat.template import compiled, messages_of, rendered

ANSWER_TOKENS = 12
TOP = 512  # likeliest tokens of a distribution that are compared one by one; all others count as one token
TIE = 0.1  # nats: float32 gives both tokens nearly the same probability
BATCH = 16
MOST_LOST = 0.05  # of the answers
CACHE_EVERY = 4  # of so many answers one judges a cache alone
MOST_CACHE_KL = 0.001  # nats by a cache alone: a third of what int8 weights lose (docs/decisions/quantization.md)
QUESTIONS = (files("merino_edge.export") / "questions.txt").read_text(encoding="utf-8").splitlines()


class Answer(NamedTuple):
    """A greedy answer of the model in float32.

    `tokens` and `logprobs` [steps, TOP]: the likeliest tokens of each step and their log-probabilities, the likeliest
    first.
    """

    prompt: list[int]
    ids: list[int]
    tokens: np.ndarray
    logprobs: np.ndarray


class Divergence(NamedTuple):
    """`kl_mean`, `kl_p99`: Kullback-Leibler divergence from float32 in nats, per token. `top1`: share of tokens at
    which both have the same likeliest token. `kept` of `answers`: see the module."""

    kl_mean: float
    kl_p99: float
    top1: float
    kept: int
    answers: int
    tokens: int


def keeps(measured: Divergence | None) -> bool:
    """Return whether a format keeps enough of the model's answers; True if none were compared."""
    return measured is None or 1 - measured.kept / measured.answers <= MOST_LOST


def divergence_words(measured: Divergence) -> str:
    return (
        f"KL from float32 {measured.kl_mean:.4f} (99th percentile {measured.kl_p99:.3f}),"
        f" {measured.top1:.1%} same tokens, {measured.kept} of {measured.answers} answers kept"
    )


def answers_of(source: Source, context: int, questions: Sequence[str] = QUESTIONS) -> list[Answer]:
    """Return greedy answers by torch, to questions in the source's chat template if it has one. Prompts of one length
    form a batch.

    Prompts that leave no room in the context, and prompts that a small tokenizer encodes to nothing, are left out.
    """
    tokenizer, chat = tokenizer_of(source), source.chat
    if chat:
        template = compiled(chat.text, chat.source)
        questions = [rendered(template, chat.tokens, messages_of(None, [], question)) for question in questions]
    encoded = [tokenizer.encode(question, add_special_tokens=chat is None).ids for question in questions]
    prompts = sorted((prompt for prompt in encoded if 0 < len(prompt) <= context - ANSWER_TOKENS), key=len)
    answers: list[Answer] = []
    for _, group in groupby(prompts, len):
        equally_long = list(group)
        for start in range(0, len(equally_long), BATCH):
            answers += batch_answers(source, equally_long[start : start + BATCH])
    return sorted(answers, key=lambda answer: answer.prompt)


@torch.no_grad()
def batch_answers(source: Source, prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """Return answers to prompts of one length, each up to and including its first stop token."""
    given, cache = torch.tensor(prompts), None
    steps: list[tuple[list[int], np.ndarray, np.ndarray]] = []  # ids, and tokens and log-probabilities [prompts, TOP]
    for _ in range(ANSWER_TOKENS):
        output = source.model(input_ids=given, cache=cache, use_cache=True, logits_to_keep=1)
        cache = output.cache
        likeliest = output.logits[:, -1].float().log_softmax(-1).topk(min(TOP, output.logits.shape[-1]))
        if not likeliest.values[:, 0].isfinite().all():
            raise not_finite(source.model, source.name)
        given = likeliest.indices[:, :1]
        steps.append((given[:, 0].tolist(), likeliest.indices.int().numpy(), likeliest.values.numpy()))
    answers = []
    for row, prompt in enumerate(prompts):
        ids = [step_ids[row] for step_ids, _, _ in steps]
        end = next((place + 1 for place, token in enumerate(ids) if token in source.stop_ids), len(ids))
        tokens, logprobs = (np.stack([step[part][row] for step in steps[:end]]) for part in (1, 2))
        answers.append(Answer(list(prompt), ids[:end], tokens, logprobs))
    return answers


def divergence(bundle: Bundle, answers: Sequence[Answer]) -> Divergence:
    """Return the divergence of the bundle from float32 on these answers."""
    with closing(open_backend(bundle)) as backend:
        return compared(
            (answer, chain.from_iterable(logits_behind(backend, ids_of(answer), len(answer.prompt) - 1)))
            for answer in answers
        )


@torch.no_grad()
def cache_divergence(model: PreTrainedModel, answers: Sequence[Answer], scales: CacheScales) -> Divergence:
    """Return the divergence of the float32 model over a quantized cache from its own over a float32 cache, on one of
    CACHE_EVERY answers."""
    return compared(
        (answer, model(
            input_ids=torch.tensor([ids_of(answer)]), cache=RoundedCache(scales), use_cache=True,
            logits_to_keep=len(answer.ids),
        ).logits[0].float().numpy())
        for answer in answers[::CACHE_EVERY]
    )  # fmt: skip


def ids_of(answer: Answer) -> list[int]:
    """Return the ids whose last logits are those of the answer's steps."""
    return [*answer.prompt, *answer.ids[:-1]]


def compared(answers: Iterable[tuple[Answer, Iterable[np.ndarray]]]) -> Divergence:
    """Return the divergence of logits [vocab] of each step of each answer."""
    all_steps: list[tuple[float, bool, bool]] = []
    kept = count = 0
    for answer, logits in answers:
        steps = [compare_step(row, answer, index) for index, row in enumerate(logits)]
        kept += next((near for _, same, near in steps if not same), True)  # at the first token that differs
        count += 1
        all_steps += steps
    kl, same_top, _ = zip(*all_steps, strict=True)
    return Divergence(
        kl_mean=float(np.mean(kl)), kl_p99=float(np.quantile(kl, 0.99)),
        top1=sum(same_top) / len(kl), kept=kept, answers=count, tokens=len(kl),
    )  # fmt: skip


def compare_step(logits: np.ndarray, answer: Answer, index: int) -> tuple[float, bool, bool]:
    """Compare logits [vocab] with float32's distribution at token `index` of the answer. Return the KL divergence from
    it, whether the likeliest token is float32's, and whether it is at least nearly tied with that in float32."""
    tokens, expected = answer.tokens[index], answer.logprobs[index].astype(np.float64)
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    probabilities, others = np.exp(expected), 1 - np.exp(expected).sum()
    kl = float((probabilities * (expected - logprobs[tokens])).sum())
    if others > 1e-6:
        kl += float(others * (np.log(others) - np.log(max(1e-12, 1 - np.exp(logprobs[tokens]).sum()))))
    chosen = int(logits.argmax())
    rank = np.flatnonzero(tokens == chosen)
    near = bool(len(rank)) and bool(expected[0] - expected[rank[0]] < TIE)
    return max(0.0, kl), chosen == answer.ids[index], near
