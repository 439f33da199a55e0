"""The tokenizer: a byte-level BPE like Qwen2's, trained on the corpus. In: documents; out: a `Tokenizer`."""

from collections.abc import Iterable, Iterator

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from models.tiny_chat_recipe.conversation import END_OF_TEXT, TURN_END, TURN_START
from models.tiny_chat_recipe.corpus import Document

SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

# The split pattern of Qwen2's tokenizer.json.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a token that the tokenizer is known to have."""
    found = tokenizer.token_to_id(text)
    assert found is not None
    return found


def _texts(documents: Iterable[Document]) -> Iterator[str]:
    for document in documents:
        if isinstance(document, str):
            yield document
        else:
            for message in document:
                yield f"{message.role}\n"
                yield message.content


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """Return a tokenizer of exactly `vocab_size` tokens; the special tokens have the last ids, as in Qwen2."""
    tokenizer = Tokenizer(BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    assert tokenizer.get_vocab_size() == vocab_size, "the corpus is too small for this vocabulary"
    return tokenizer
