"""Steps arrive at a rank as they were sent, and a failure that not all ranks share is not mistaken for one that is."""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.pytorch.parallel.messages import Allocate, Answer, Step, read_answer, read_command, write
from backends.pytorch.parallel.watch import Process, Watch
from nanovllm.batch import SAMPLING_ROW, Batch, SamplingBatch
from nanovllm.errors import BackendError, BackendLostError

ARRAYS = (
    "token_ids",
    "positions",
    "query_start",
    "context_lens",
    "block_tables",
    "slot_mapping",
    "logits_indices",
    "logits_start",
    "adapter_ids",
)
FAILED = Answer(BackendError("boom"), is_joint=True)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=5), st.integers(0, 4))
def test_a_step_arrives_as_it_was_sent(sizes: list[tuple[int, int]], max_blocks: int) -> None:
    batch = batch_of(sizes, max_blocks)
    command = read_command(write(Step(batch)))
    assert isinstance(command, Step)
    assert (command.batch.seq_ids, command.batch.released_seq_ids) == (batch.seq_ids, batch.released_seq_ids)
    for name in ARRAYS:
        sent, arrived = getattr(batch, name), getattr(command.batch, name)
        assert arrived.dtype == sent.dtype
        assert arrived.flags.aligned
        np.testing.assert_array_equal(arrived, sent)
    assert len(command.batch.sampling.rows) == batch.num_logits


def batch_of(sizes: list[tuple[int, int]], max_blocks: int) -> Batch:
    """sizes: new tokens and wanted rows of each sequence. The numbers mean nothing."""
    random = np.random.default_rng(0)
    num_tokens, num_logits = (sum(pair[i] for pair in sizes) for i in (0, 1))
    starts, logits_starts = (np.cumsum([0, *[pair[i] for pair in sizes]]).astype(np.int32) for i in (0, 1))

    def draw(*shape: int) -> np.ndarray:
        return random.integers(0, 2**31, shape).astype(np.int32)

    return Batch(
        seq_ids=[2**40 + i for i in range(len(sizes))],
        released_seq_ids=[7, 2**41],
        token_ids=draw(num_tokens).astype(np.int64),
        positions=draw(num_tokens).astype(np.int64),
        query_start=starts,
        context_lens=draw(len(sizes)),
        block_tables=draw(len(sizes), max_blocks),
        slot_mapping=draw(num_tokens),
        logits_indices=draw(num_logits),
        logits_start=logits_starts,
        adapter_ids=draw(len(sizes)),
        sampling=SamplingBatch(np.zeros(num_logits, SAMPLING_ROW), np.zeros(num_logits, np.int64)),
    )


def test_other_messages_arrive_too() -> None:
    assert read_command(write(Allocate(3, 16))) == Allocate(3, 16)
    answer = read_answer(write(FAILED))
    assert answer.is_joint
    assert str(answer.error) == "boom"


RANK = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
for message in sys.argv[2:]:
    connection.send_bytes(bytes.fromhex(message))
print("nothing more to say", file=sys.stderr, flush=True)
connection.recv_bytes()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., Watch]]:
    """Watches processes that each send the given answers and then wait."""
    watches = []

    def make(*answers: list[Answer]) -> Watch:
        watches.append(Watch([process(i + 1, each) for i, each in enumerate(answers)], failure_grace_s=0.5))
        return watches[-1]

    yield make
    for watch in watches:
        watch.end()


def process(number: int, answers: list[Answer]) -> Process:
    ours, theirs = socket.socketpair()
    output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the watch)
    messages = [write(answer).hex() for answer in answers]
    with theirs:
        handle = subprocess.Popen(
            [sys.executable, "-c", RANK, str(theirs.fileno()), *messages],
            pass_fds=[theirs.fileno()],
            stderr=output,
        )
    return Process(number, Connection(ours.detach()), handle, output)


def test_a_failure_of_all_ranks_is_settled_and_they_go_on(start: Callable[..., Watch]) -> None:
    watch = start([FAILED], [FAILED])
    error = BackendError("boom")
    assert watch.settle_failure(error) is error
    watch.check(patience_s=1.0)


def test_where_rank_0_fails_alone_all_are_ended(start: Callable[..., Watch]) -> None:
    watch = start([FAILED], [])
    error = watch.settle_failure(BackendError("bang"))
    assert isinstance(error, BackendLostError)
    assert "rank 0 failed in a step in which others did not: bang" in str(error)
    with pytest.raises(BackendLostError, match="bang"):
        watch.check()


def test_where_another_rank_fails_alone_all_are_ended(start: Callable[..., Watch]) -> None:
    watch = start([], [FAILED])
    with pytest.raises(BackendLostError, match="rank 2 failed in a step in which others did not: boom"):
        watch.check(patience_s=5.0)


def test_whoever_has_to_be_told_of_a_loss_is_told_once() -> None:
    losses: list[str] = []
    watch = Watch([process(1, []), process(2, [])], lambda: losses.append("lost"))
    try:
        watch.lose("one reason")
        watch.lose("another one")
        with pytest.raises(BackendLostError, match="one reason"):
            watch.check(patience_s=5.0)
    finally:
        watch.end()
    assert losses == ["lost"]


def test_an_end_that_was_asked_for_is_no_loss() -> None:
    losses: list[str] = []
    watch = Watch([process(1, [])], lambda: losses.append("lost"))
    watch.end()
    assert losses == []


def test_a_failure_that_was_taken_as_an_answer_ends_nobody_later(start: Callable[..., Watch]) -> None:
    watch = start([FAILED])
    with pytest.raises(BackendError, match="boom"):
        watch.wait_for_answers()
    watch.check(patience_s=1.0)


def test_answers_are_waited_for_and_their_errors_raised(start: Callable[..., Watch]) -> None:
    start([Answer()], [Answer()]).wait_for_answers()
    with pytest.raises(BackendError, match="boom"):
        start([Answer()], [Answer(BackendError("boom"))]).wait_for_answers()


def test_a_process_that_ends_is_named_with_its_last_words() -> None:
    processes = [process(1, [Answer()]), process(2, [])]
    watch = Watch(processes)
    try:
        while not processes[1].output.tell():  # both ends share the place in the file
            time.sleep(0.02)
        processes[1].handle.terminate()
        with pytest.raises(BackendLostError, match="rank 2 was killed by signal SIGTERM; its last words: nothing more"):
            watch.wait_for_answers()
    finally:
        watch.end()
