"""The vocabulary of a design's own tokenizer: a BPE of the training text, for chats with the special tokens of ChatML.

Loads no torch: `merino-edge design --data` asks how many entries a text can fill.
"""

from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from merino_edge.families.checkpoint import ChatTemplate
from merino_edge.text.tokenizer import largest_tokenizer, too_large, train_tokenizer
from merino_edge.training.sources import GIVE_TEXT, DataSource, has_chats, segments_of
from merino_runtime.errors import MerinoError

MOST_CHARACTERS = 200_000_000  # most text for a BPE: the beginning of each source, in equal parts
SMALL_BYTES = 20_000_000  # a larger text fills any usual vocabulary, and a BPE of all of it takes a minute
START, END = "<|im_start|>", "<|im_end|>"
CHATML = """\
{%- if tools %}<|im_start|>system
{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}

{% endif %}Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message['role'] == 'system') %}<|im_start|>{{ message['role'] }}
{{ message['content'] or '' }}
{%- for call in message['tool_calls'] or [] %}{% set function = call['function'] or call %}\
{% set arguments = function['arguments'] %}<tool_call>
{"name": {{ function['name'] | tojson }}, "arguments": {{ arguments if arguments is string else arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def chat_template(sources: Sequence[DataSource]) -> ChatTemplate | None:
    """Return ChatML if a source has chats; None if none has."""
    chats = any(has_chats(source) for source in sources)
    return ChatTemplate(CHATML, {"eos_token": END}, "ChatML") if chats else None


def new_tokenizer(sources: Sequence[DataSource], vocab: int, chat: ChatTemplate | None) -> Tokenizer:
    """Train a BPE on the sources. Raises MerinoError for text that cannot be used or fills fewer entries."""
    return train_tokenizer(text_of(sources, chat), vocab, special=special_of(chat))


def most_entries(sources: Sequence[DataSource], vocab: int) -> int:
    """Return how many of `vocab` entries a BPE of these sources has; all for a large text, which is not read."""
    if sum(source.file.bytes for source in sources) > SMALL_BYTES:
        return vocab
    chat = chat_template(sources)
    return largest_tokenizer(text_of(sources, chat), vocab, special=special_of(chat))[0].get_vocab_size()


def check_vocabulary(sources: Sequence[DataSource], vocab: int) -> None:
    """Raises MerinoError if a small text does not fill so many entries. Before memory is estimated, for which such a
    vocabulary would be a worse reason."""
    entries = most_entries(sources, vocab)
    if entries < vocab:
        raise too_large(vocab, entries, sum(source.file.bytes for source in sources))


def special_of(chat: ChatTemplate | None) -> tuple[str, ...]:
    return (START, END) if chat else ()


def text_bytes(sources: Sequence[DataSource]) -> int:
    """Return the bytes of the sources' text; of a large source those of its files."""
    size = sum(source.file.bytes for source in sources)
    if size > SMALL_BYTES:
        return size
    return sum(len(text.encode()) for text in text_of(sources, chat_template(sources)))


def text_of(sources: Sequence[DataSource], chat: ChatTemplate | None) -> Iterator[str]:
    """Yield the text that a BPE is trained on. Raises MerinoError for a source without text."""
    most = MOST_CHARACTERS // len(sources)
    for source in sources:
        left = most
        for segment in segments_of(source, chat):
            yield segment.text[:left]
            left -= len(segment.text)
            if left <= 0:
                break
        if left == most:
            raise MerinoError(f"no text in {source}: {GIVE_TEXT}")
