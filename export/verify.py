"""`--verify`: an export held against float32, on the answers that float32 gives.

In: two exported folders of one checkpoint, the checkpoint and, if wanted, a text. Out: a `Verification`. A few prompts
are continued greedily in float32; then both models read prompt and continuation, and at each token of the continuation
their distributions are compared. So one early difference does not count again in all that follows it. transformers,
where it is installed, reads the same tokens, so that a defect common to all our exports would show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from export.graph_session import GraphSession
from export.transformers_reference import NoTransformersError, TransformersReference
from nanovllm.chat_template import ChatTemplate
from nanovllm.errors import ExportError
from nanovllm.model_info import ModelInfo

__all__ = [
    "PROMPTS",
    "Agreement",
    "Comparison",
    "TransformersAgreement",
    "Verification",
    "compare_logits",
    "verify",
]

PROMPTS = (
    "What is the capital of France?",
    "How much is 15 minus 6?",
    "What colour is the sky?",
    "Tell me a story about a cat.",
    "Which country has Tokyo as its capital?",
    "List three animals.",
    "What is the opposite of hot?",
    "Write the 7 times table.",
    "Can you explain what a volcano is?",
    "Who are you?",
    "What language do they speak in Brazil?",
    "Give me a list of five colours.",
)
"""Continued by chat models as questions, by others as text."""

_NUM_TOKENS = 48  # of a continuation, at most
_WINDOW = 512  # tokens of a text that are read together
_RANDOM_PROMPT = 24  # tokens, where a checkpoint has no tokenizer


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models at the same tokens. All sums are over positions.

    num_same: positions whose most likely token is the same. divergence: sum of KL(reference || export) in nats.
    loss, reference_loss: sums of -log p of the token that follows.
    """

    num_positions: int
    num_same: int
    divergence: float
    loss: float
    reference_loss: float

    def __add__(self, other: "Comparison") -> "Comparison":
        mine, others = asdict(self), asdict(other)
        return Comparison(**{key: mine[key] + others[key] for key in mine})


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """An export and a float32 reference along the same answers.

    num_positions: tokens of the answers. top1_agreement: share of them at which both models prefer the same token.
    mean_kl: of the export's distribution from the reference's, in nats. perplexity, reference_perplexity: of the text
    where one was given, else of the answers.
    """

    num_positions: int
    top1_agreement: float
    mean_kl: float
    perplexity: float
    reference_perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersAgreement(Agreement):
    """The reference being the checkpoint in transformers of this version, in float32."""

    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification(Agreement):
    """What model_info.json says under "verification"; the reference is our own export in float32.

    same_answers: share of prompts that both continue alike to the end. perplexity_of: "text" or "answers".
    transformers: the same export at the same tokens against transformers; where it is None, transformers_note says why.
    """

    num_prompts: int
    same_answers: float
    perplexity_of: str
    transformers: TransformersAgreement | None
    transformers_note: str | None

    def as_document(self) -> dict[str, Any]:
        return {"reference": "float32", **asdict(self)}


class _Model(Protocol):
    def logits(self, token_ids: Sequence[int], *, first: int) -> npt.NDArray[np.float32]:
        """Logits after each token from index `first` on."""


@dataclass(frozen=True, slots=True)
class _Passage:
    """Tokens that models read; they are compared where they predict those from index `first` on."""

    token_ids: list[int]
    first: int


def verify(
    export: Path,
    reference: Path,
    info: ModelInfo,
    checkpoint: Path,
    text: str | None,
    *,
    random_weights: bool = False,
) -> Verification:
    """Compares the exported folder with `reference`, both of what `info` describes, and with transformers.

    checkpoint: the folder that both were made from, where the tokenizer is. text: for the perplexity. random_weights:
    whether its weights were drawn, so that transformers could not read them. Raises `ExportError`.
    """
    prompts, num_tokens = _prompts(checkpoint, info), _num_tokens(info)
    windows = [] if text is None else [_Passage(ids, 1) for ids in _windows(text, checkpoint, info.max_model_len)]
    longest = max(*map(len, prompts), *(len(window.token_ids) for window in windows)) + num_tokens
    candidate, original = (GraphSession(folder, info, longest) for folder in (export, reference))
    answers, num_alike = [], 0
    for prompt in prompts:
        answer = original.greedy(prompt, num_tokens, info.eos_token_ids)
        answers.append(_Passage([*prompt, *answer], len(prompt)))
        num_alike += candidate.greedy(prompt, num_tokens, info.eos_token_ids) == answer
    agreement = _agreement(candidate, original, answers, windows)
    del original  # gives its memory back before transformers takes as much
    transformers, note = _against_transformers(candidate, None if random_weights else checkpoint, answers, windows)
    return Verification(
        **asdict(agreement),
        num_prompts=len(prompts),
        same_answers=num_alike / len(prompts),
        perplexity_of="text" if windows else "answers",
        transformers=transformers,
        transformers_note=note,
    )


def _against_transformers(
    candidate: GraphSession, checkpoint: Path | None, answers: Sequence[_Passage], windows: Sequence[_Passage]
) -> tuple[TransformersAgreement | None, str | None]:
    """The agreement, or why there is none: the export is not to blame for what transformers cannot do. checkpoint: None
    where its weights were drawn."""
    if checkpoint is None:
        return None, "random weights; there is no checkpoint that transformers could read"
    try:
        with TransformersReference(checkpoint) as model:
            agreement = _agreement(candidate, model, answers, windows)
            return TransformersAgreement(**asdict(agreement), version=model.version), None
    except NoTransformersError as error:
        return None, str(error)


def _agreement(
    candidate: _Model, reference: _Model, answers: Sequence[_Passage], windows: Sequence[_Passage]
) -> Agreement:
    """windows: of the text for the perplexity; none: it is that of the answers."""
    found = _compare(candidate, reference, answers)
    read = _compare(candidate, reference, windows) if windows else found
    return Agreement(
        num_positions=found.num_positions,
        top1_agreement=found.num_same / found.num_positions,
        mean_kl=found.divergence / found.num_positions,
        perplexity=float(np.exp(read.loss / read.num_positions)),
        reference_perplexity=float(np.exp(read.reference_loss / read.num_positions)),
    )


def _compare(candidate: _Model, reference: _Model, passages: Sequence[_Passage]) -> Comparison:
    total = Comparison(0, 0, 0.0, 0.0, 0.0)
    for passage in passages:
        read, first = passage.token_ids[:-1], passage.first
        rows, reference_rows = (model.logits(read, first=first - 1) for model in (candidate, reference))
        total += compare_logits(rows, reference_rows, passage.token_ids[first:])
    return total


def compare_logits(
    export: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], token_ids: Sequence[int]
) -> Comparison:
    """export, reference: (positions, vocab_size), the logits by which token_ids, (positions,), are chosen."""
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (reference, export))
    places = np.arange(len(token_ids))
    return Comparison(
        num_positions=len(token_ids),
        num_same=int((export.argmax(1) == reference.argmax(1)).sum()),
        divergence=float((np.exp(log_p) * (log_p - log_q)).sum()),
        loss=float(-log_q[places, token_ids].sum()),
        reference_loss=float(-log_p[places, token_ids].sum()),
    )


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return normalized


def _num_tokens(info: ModelInfo) -> int:
    """Tokens of a continuation: of a model for short texts no more than half of one."""
    return max(1, min(_NUM_TOKENS, info.max_model_len // 2))


def _prompts(folder: Path, info: ModelInfo) -> list[list[int]]:
    """The prompts as token ids; random ones, always the same, where there is no tokenizer."""
    room = max(1, info.max_model_len - _num_tokens(info))
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        random = np.random.default_rng(0)
        shape = (len(PROMPTS), min(_RANDOM_PROMPT, room))
        random_prompts: list[list[int]] = random.integers(0, info.vocab_size, shape).tolist()
        return random_prompts
    template = ChatTemplate.load(folder)
    prompts = []
    for prompt in PROMPTS:
        text = prompt if template is None else template.render([{"role": "user", "content": prompt}])
        prompts.append(tokenizer.encode(text, add_special_tokens=template is None).ids[-room:])
    return prompts


def _windows(text: str, folder: Path, max_model_len: int) -> list[list[int]]:
    """The text's tokens, cut into windows that are read one by one."""
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        raise ExportError(f"a text cannot be verified without a tokenizer: {folder} has no tokenizer.json.")
    ids: list[int] = tokenizer.encode(text).ids
    return list(_cut(ids, min(_WINDOW, max_model_len)))


def _cut(ids: list[int], size: int) -> Iterator[list[int]]:
    if len(ids) < 2:
        raise ExportError(f"the text to verify with has {len(ids)} tokens; it needs at least 2. Give a longer one.")
    for start in range(0, len(ids), size):
        if len(window := ids[start : start + size]) > 1:
            yield window


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of tokenizer.json, None where there is none."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # a bare one, from Rust
        raise ExportError(f"{file} cannot be read: {error}. Get the file again.") from error
