"""What grammars ask of tokenizers: the bytes of tokens inside a text, and which tokens are no text."""

import random
import re
from collections.abc import Sequence as Seq
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as RustTokenizer

from backends.mock.simple_bpe import SimpleBPE
from backends.tokenizers.hf import HFTokenizer
from nanovllm.engine.grammar_vocabulary import GrammarVocabulary
from nanovllm.errors import SamplingParamsError
from nanovllm.structured_outputs import StructuredOutputsParams
from tests.structured.walking import ByteTokenizer, Setup, allowed_ids, tiny_chat_setup, walk

LLAMA_2 = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
GEMMA = LLAMA_2[:3]


def sentencepiece(decoder: Any) -> HFTokenizer:
    """A small vocabulary in sentencepiece's way: "▁" is a space, <0x0A> a byte, a space goes before every text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"helowrd!,", "▁h", "el", "lo", "▁w", "or", "▁he", "▁hello"]
    merges = [("▁", "h"), ("e", "l"), ("l", "o"), ("▁", "w"), ("o", "r"), ("▁h", "e")]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>")
    rust = RustTokenizer(model)
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoder
    rust.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return HFTokenizer(rust)


@given(text=st.text(alphabet="helo wrd!,\né日😀", min_size=1, max_size=12))
@pytest.mark.parametrize("steps", [LLAMA_2, GEMMA], ids=["llama-2", "gemma"])
def test_the_bytes_of_a_sentencepiece_vocabulary_spell_what_it_decodes(steps: list[Any], text: str) -> None:
    tokenizer = sentencepiece(decoders.Sequence(steps))
    assert tokenizer.token_bytes() is None
    pieces = tokenizer.inner_token_bytes()
    assert pieces is not None
    spelt = b"".join(pieces[i] for i in tokenizer.encode(text, add_special_tokens=False))
    assert spelt == b" " + text.encode()  # the space that it puts before every text


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.CTC(), decoders.BPEDecoder(), None])
def test_a_decoder_that_looks_at_neighbours_is_refused(decoder: Any) -> None:
    tokenizer = sentencepiece(decoder) if decoder else HFTokenizer(RustTokenizer(models.WordLevel({"a": 0}, "a")))
    assert tokenizer.inner_token_bytes() is None
    with pytest.raises(SamplingParamsError, match="bytes of every token"):
        GrammarVocabulary(tokenizer, 300, (2,))


def test_a_metaspace_decoder_is_known() -> None:
    pieces = sentencepiece(decoders.Metaspace()).inner_token_bytes()
    assert pieces is not None
    assert b" hello" in pieces
    assert b"<0x0A>" in pieces  # it spells no bytes


@pytest.mark.parametrize("regex", ["hello, world!", "(hello|world)( hello){1,3}", "[^a-z]+", r"(\n|é)+"])
def test_a_grammar_runs_on_a_sentencepiece_vocabulary(regex: str) -> None:
    tokenizer = sentencepiece(decoders.Sequence(LLAMA_2))
    setup = Setup.of(tokenizer, 300, (2,))
    grammar = setup.compiler.compile(StructuredOutputsParams(regex=regex))
    pieces = tokenizer.inner_token_bytes()
    assert pieces is not None
    for seed in range(10):
        token_ids, _ = walk(setup, grammar, random.Random(seed), free_tokens=20)
        assert re.fullmatch(regex, b"".join(pieces[i] for i in token_ids).decode())


@pytest.mark.parametrize(
    "setup", [tiny_chat_setup(), Setup.of(SimpleBPE(), 600, (0,))], ids=["tiny-chat", "simple-bpe"]
)
@given(text=st.text(max_size=20) | st.sampled_from(["<|im_end|>", "a<|im_start|>b<|endoftext|>"]))
def test_forced_text_is_spelt_with_tokens_that_are_text(setup: Setup, text: str) -> None:
    vocabulary = GrammarVocabulary(setup.tokenizer, setup.vocab_size, setup.eos_token_ids)
    token_ids = vocabulary(text.encode())
    assert b"".join(vocabulary.tokens[i] for i in token_ids) == text.encode()
    assert not set(token_ids) & set(vocabulary.special_token_ids)


def test_special_tokens_are_never_allowed_as_text() -> None:
    setup = tiny_chat_setup()
    special = setup.tokenizer.special_token_ids
    state = setup.compiler.compile(StructuredOutputsParams(regex=r"[^x]{5,}")).start()
    assert not special & set(allowed_ids(state.masks()[0].result()))
    state = setup.compiler.compile(StructuredOutputsParams(choice=["<|im_end|>"])).start()
    for _ in range(20):
        allowed = allowed_ids(state.masks()[0].result())
        if state.is_finished:
            break
        assert not special & set(allowed)
        state.accept(allowed[0])
    assert state.is_finished


def test_logits_narrower_than_the_tokenizer_are_never_overrun() -> None:
    tokenizer = tiny_chat_setup().tokenizer
    end = max(tokenizer.encode("."))
    setup = Setup.of(tokenizer, 1000, (end,))
    grammar = setup.compiler.compile(StructuredOutputsParams(choice=["The capital of France is Paris", "hello world"]))
    for seed in range(10):
        token_ids, text = walk(setup, grammar, random.Random(seed))
        assert max(token_ids) < 1000
        assert text in ("The capital of France is Paris", "hello world")


def test_text_that_no_token_can_spell_is_refused() -> None:
    class LowerCase(ByteTokenizer):
        def token_bytes(self) -> Seq[bytes]:
            return [piece if b"a" <= piece <= b"z" else b"" for piece in super().token_bytes()]

    setup = Setup.of(LowerCase(), 258, (256,))
    setup.compiler.compile(StructuredOutputsParams(regex="a"))
    with pytest.raises(SamplingParamsError, match="no output"):
        setup.compiler.compile(StructuredOutputsParams(regex="A"))


def test_a_dead_end_that_shows_late_fails_the_sequence_with_the_reason() -> None:
    class NoDigits(ByteTokenizer):
        def token_bytes(self) -> Seq[bytes]:
            return [b"" if piece.isdigit() else piece for piece in super().token_bytes()]

    setup = Setup.of(NoDigits(), 258, (256,))
    grammar = setup.compiler.compile(StructuredOutputsParams(regex="[ab][0-9]"))
    state = grammar.start()
    state.accept(ord("a"))
    assert allowed_ids(state.masks()[0].result()) == [256]
    with pytest.raises(SamplingParamsError, match="no output"):
        state.accept(256)
    assert allowed_ids(grammar.start().masks()[0].result()) == [ord("a"), ord("b")]
