"""Text as it grows: equal to the whole decoded at once, never half a character, never a piece of a stop string."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from backends.mock.simple_bpe import SimpleBPE
from backends.tokenizers.hf import HFTokenizer
from nanovllm import SamplingParams
from nanovllm.engine.detokenizer import DetokenizerFactory
from nanovllm.plugins import Tokenizer

HALF = "\ufffd"
SPECIAL = ["<|end|>", "<|é|>"]  # the library decodes the second as a broken byte: é stands for one in its alphabet


class WithoutBytes(Tokenizer):
    """Hides the bytes of another tokenizer, so that its text is found by decoding windows."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner
        self.vocab_size = inner.vocab_size
        self.special_token_ids = inner.special_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.inner.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        return self.inner.decode(token_ids, skip_special_tokens=skip_special_tokens)


def byte_level_tokenizer() -> HFTokenizer:
    """A byte-level BPE with a token for each byte, merges that join halves of characters, and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    by_byte = {text: i for i, text in enumerate(alphabet)}
    ((euro, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("€")
    first, second = euro[:2]
    merges = [("a", "b"), (first, second), ("ab", first), ("ab" + first, second)]
    vocab = by_byte | {a + b: 256 + i for i, (a, b) in enumerate(merges)}
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    rust.add_tokens([AddedToken("<think>", special=False)])
    return HFTokenizer(rust)


def sentencepiece_like_tokenizer() -> HFTokenizer:
    """As Llama's: pieces with a metaspace, bytes for what has no piece, the first space stripped."""
    pieces = ["<s>", "</s>", "▁", "a", "b", "c", "▁a", "▁ab", "▁c", "é", "。", *(f"<0x{i:02X}>" for i in range(256))]
    rust = RustTokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("▁", "a"), ("▁a", "b"), ("▁", "c")],
                   byte_fallback=True, fuse_unk=True)
    )  # fmt: skip
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return HFTokenizer(rust)


SIMPLE = SimpleBPE()
BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE_LIKE = sentencepiece_like_tokenizer()
BY_BYTES = {"simple": SIMPLE, "byte-level": BYTE_LEVEL}
BY_WINDOW = {"simple": WithoutBytes(SIMPLE), "byte-level": WithoutBytes(BYTE_LEVEL)}

texts = st.text(
    st.sampled_from("ab €é🙂\u0301\u200d👩👧ก\n\ufffd") | st.characters(exclude_categories=["Cs"]), max_size=12
)


@dataclass
class Shown:
    """What a detokenizer showed: the text after each token, the final text, the stop string and when it came."""

    growth: list[str]
    text: str
    stop: str | None
    num_tokens: int


def show(tokenizer: Tokenizer, token_ids: Seq[int], prompt: Seq[int] = (), **options: object) -> Shown:
    """Feeds the tokens one by one and ends the text, as the engine does."""
    detokenizer = DetokenizerFactory(tokenizer).make(SamplingParams(**options), prompt)
    growth, deltas, stop, num_tokens = [], [], None, 0
    for token_id in token_ids:
        num_tokens += 1
        stop = detokenizer.feed(token_id)
        growth.append(detokenizer.text)
        deltas.append(detokenizer.take())
        if stop is not None:
            break
    else:
        stop = detokenizer.finish()
        growth.append(detokenizer.text)
        deltas.append(detokenizer.take())
    assert "".join(deltas) == detokenizer.text
    assert all(later.startswith(earlier) for earlier, later in pairwise(growth))
    return Shown(growth, detokenizer.text, stop, num_tokens)


class Scripted(Tokenizer):
    """Its tokens are given pieces of bytes: any text in any split."""

    def __init__(self, pieces: Seq[bytes]) -> None:
        self.pieces = list(pieces)
        self.vocab_size = len(self.pieces)
        self.special_token_ids = frozenset()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError("only decodes")

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        return b"".join(self.pieces[i] for i in token_ids).decode("utf-8", "replace")

    def token_bytes(self) -> Seq[bytes]:
        return self.pieces


@st.composite
def splits(draw: st.DrawFn, source: st.SearchStrategy[bytes]) -> list[bytes]:
    """A text's bytes cut anywhere, into pieces that may be empty."""
    data = draw(source)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=10)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


valid_bytes = texts.map(str.encode)
any_bytes = st.lists(st.binary(max_size=3) | valid_bytes, max_size=6).map(b"".join)


@given(splits(valid_bytes), st.booleans())
@example(["🙂".encode()[:1], "🙂".encode()[1:3], "🙂".encode()[3:]], True)
@settings(max_examples=300)
def test_text_cut_anywhere_is_whole_again_and_never_shows_half_a_character(pieces: list[bytes], window: bool) -> None:
    tokenizer: Tokenizer = Scripted(pieces)
    shown = show(WithoutBytes(tokenizer) if window else tokenizer, range(len(pieces)))
    text = b"".join(pieces).decode()
    assert shown.text == text
    assert all(text.startswith(part) for part in shown.growth)
    whole = [b"".join(pieces[: i + 1]).decode("utf-8", "ignore") for i in range(len(pieces))]
    if not window:  # at once, not one token late
        assert shown.growth[:-1] == whole


@given(splits(any_bytes))
@settings(max_examples=300)
def test_bytes_that_are_no_text_become_what_decoding_them_at_once_gives(pieces: list[bytes]) -> None:
    assert show(Scripted(pieces), range(len(pieces))).text == b"".join(pieces).decode("utf-8", "replace")


@pytest.mark.parametrize("tokenizer", BY_BYTES.values(), ids=BY_BYTES)
@given(data=st.data())
def test_any_tokens_by_bytes_give_the_tokenizer_s_own_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    skip = data.draw(st.booleans())
    shown = show(tokenizer, token_ids, skip_special_tokens=skip)
    assert shown.text == tokenizer.decode(token_ids, skip_special_tokens=skip)
    whole = shown.text
    assert all(part == whole[: len(part)] for part in shown.growth)


@pytest.mark.parametrize("tokenizer", BY_WINDOW.values(), ids=BY_WINDOW)
@given(prompt=texts, text=texts, skip=st.booleans())
def test_the_window_decoder_shows_what_the_tokens_add_to_the_prompt(
    tokenizer: Tokenizer, prompt: str, text: str, skip: bool
) -> None:
    token_ids = tokenizer.encode(text)
    shown = show(tokenizer, token_ids, tokenizer.encode(prompt), skip_special_tokens=skip)
    assert shown.text == text
    assert all(text.startswith(part) for part in shown.growth)


@given(prompt=st.text("abc é。🙂", max_size=6), text=st.text("abc é。🙂ü\n", max_size=12), ends=st.booleans())
@settings(max_examples=200)
@example(prompt="ab", text=" c", ends=False)
@example(prompt="", text=" c", ends=False)
@example(prompt="🙂🙂", text="\n", ends=False)  # six tokens back is the middle of the first
def test_a_sentencepiece_like_tokenizer_keeps_its_spaces_and_joins_its_bytes(
    prompt: str, text: str, ends: bool
) -> None:
    tokenizer = SENTENCEPIECE_LIKE
    assert tokenizer.token_bytes() is None
    before, both = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
    assume(both[: len(before)] == before)
    token_ids = both[len(before) :] + [1] * ends
    known = tokenizer.decode(before)
    whole = tokenizer.decode(both)
    assume(HALF not in whole)
    shown = show(tokenizer, token_ids, before)
    assert known + shown.text == whole
    assert all(HALF not in part for part in shown.growth)


class Counting(WithoutBytes):
    """Remembers the most tokens that it decoded at once."""

    longest = 0

    def decode(self, token_ids: Seq[int], *, skip_special_tokens: bool = True) -> str:
        self.longest = max(self.longest, len(token_ids))
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


def test_the_window_stays_short_however_long_the_text_grows() -> None:
    tokenizer = Counting(BYTE_LEVEL)
    token_ids = BYTE_LEVEL.encode("ab € 🙂 " * 60)
    assert show(tokenizer, token_ids, token_ids).text == "ab € 🙂 " * 60
    assert tokenizer.longest <= 12


def test_a_window_decoder_does_not_lose_the_space_after_a_special_token() -> None:
    ids = SENTENCEPIECE_LIKE.encode("ab c ab")
    shown = show(SENTENCEPIECE_LIKE, [ids[0], 0, *ids[1:]], skip_special_tokens=True)
    assert shown.text == "ab c ab"
    kept = show(SENTENCEPIECE_LIKE, [ids[0], 0, *ids[1:]], skip_special_tokens=False)
    assert kept.text == SENTENCEPIECE_LIKE.decode([ids[0], 0, *ids[1:]], skip_special_tokens=False)
    assert "<s>" in kept.text


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, WithoutBytes(BYTE_LEVEL)], ids=["bytes", "window"])
def test_special_tokens_are_left_out_or_kept_as_asked_and_other_added_tokens_always_kept(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("ab<think>€<|end|>é")
    assert set(token_ids) & tokenizer.special_token_ids
    assert show(tokenizer, token_ids, skip_special_tokens=True).text == "ab<think>€é"
    assert show(tokenizer, token_ids, skip_special_tokens=False).text == "ab<think>€<|end|>é"


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size - 1), max_size=20))
@settings(max_examples=200)
def test_the_token_bytes_of_a_byte_level_tokenizer_spell_what_the_library_decodes(token_ids: list[int]) -> None:
    pieces = BYTE_LEVEL.token_bytes()
    assert pieces is not None
    assert len(pieces) == BYTE_LEVEL.vocab_size
    joined = b"".join(pieces[i] for i in token_ids).decode("utf-8", "replace")
    assert joined == BYTE_LEVEL.decode(token_ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    "tokenizer", [SIMPLE, BYTE_LEVEL, WithoutBytes(SIMPLE)], ids=["simple", "byte-level", "window"]
)
def test_ids_that_no_token_has_are_no_text(tokenizer: Tokenizer) -> None:
    (a,) = tokenizer.encode("a")
    assert show(tokenizer, [a, tokenizer.vocab_size + 5, a]).text == "aa"


# -- stop strings -----------------------------------------------------------------------------------------------------


def cut_at(text: str, stops: Seq[str], *, include: bool) -> tuple[str, str | None]:
    """What is shown of `text`: read character by character, up to the first stop string that is completed."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@st.composite
def stopped_texts(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    stops = draw(st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3))
    parts = draw(st.lists(st.text("ab€", max_size=3) | st.sampled_from(stops), max_size=6))
    return draw(splits(st.just("".join(parts).encode()))), stops


@given(stopped_texts(), st.booleans(), st.booleans())
@settings(max_examples=500)
@example(([b"abcd"], ["abcd", "bc"]), False, False)
@example(([b"a", b"b", b"a", b"b", b"b"], ["abb"]), False, False)
def test_a_text_ends_at_the_first_stop_string_however_it_is_cut_and_shows_no_piece_of_it(
    asked: tuple[list[bytes], list[str]], include: bool, window: bool
) -> None:
    pieces, stops = asked
    tokenizer: Tokenizer = Scripted(pieces)
    shown = show(
        WithoutBytes(tokenizer) if window else tokenizer,
        range(len(pieces)),
        stop=stops,
        include_stop_str_in_output=include,
    )
    expected = cut_at(b"".join(pieces).decode(), stops, include=include)
    assert (shown.text, shown.stop) == expected
    for part in shown.growth:  # nothing was shown that had to be taken back
        assert expected[0].startswith(part)


def test_a_stop_string_in_the_middle_of_a_token_cuts_what_follows() -> None:
    shown = show(Scripted([b"one ST", b"OP two"]), [0, 1], stop="STOP")
    assert (shown.growth, shown.stop, shown.num_tokens) == (["one ", "one "], "STOP", 2)
    shown = show(Scripted([b"one ST", b"OP two"]), [0, 1], stop="STOP", include_stop_str_in_output=True)
    assert (shown.text, shown.stop) == ("one STOP", "STOP")


def test_what_only_looked_like_a_stop_string_is_shown_at_once_when_it_is_none() -> None:
    assert show(Scripted([b"x S", b"T", b"A", b"S"]), range(4), stop=["STOP"]).growth == [
        "x ",
        "x ",
        "x STA",
        "x STA",
        "x STAS",
    ]


def test_of_several_stop_strings_the_first_in_the_text_wins() -> None:
    shown = show(Scripted([b"a END b ", b"STOP"]), range(2), stop=["STOP", "END"])
    assert (shown.text, shown.stop) == ("a ", "END")


def test_of_stop_strings_that_end_together_the_longest_wins() -> None:
    shown = show(Scripted([b"x\n\n", b"User:"]), range(2), stop=[":", "User:", "\n\nUser:"])
    assert (shown.text, shown.stop) == ("x", "\n\nUser:")


def test_a_stop_string_of_half_characters_is_found_when_the_text_ends() -> None:
    shown = show(Scripted([b"a", "€".encode()[:2]]), range(2), stop=HALF)
    assert (shown.text, shown.stop) == ("a", HALF)
