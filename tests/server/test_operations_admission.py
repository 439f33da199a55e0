"""Admission: the counters are exact whatever happens; who is refused, and how the server drains."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from operations import make_admission, make_metrics, values

from nanovllm import BackendError, SamplingParams
from nanovllm.server.admission import Admission, Ticket
from nanovllm.server.errors import ApiError
from nanovllm.server.exchange import Exchange

PARAMS = SamplingParams()


class AdmissionMachine(RuleBasedStateMachine):
    """Any mix of prompts that come, end, fail, are dropped, or end with their HTTP request."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = make_metrics()
        self.admission = make_admission(self.metrics, max_queued_requests=4, max_queued_tokens=40)
        self.exchanges = [Exchange(str(number), "client") for number in range(3)]
        self.held: list[Ticket] = []
        self.ended: Counter[str] = Counter()

    @rule(number=st.integers(0, 2), num_tokens=st.integers(1, 60))
    def admit(self, number: int, num_tokens: int) -> None:
        exchange = self.exchanges[number]
        others = [ticket for ticket in self.held if ticket.exchange is not exchange]
        fits = len(self.held) < 4 and self.num_tokens + num_tokens <= 40
        if others and not fits:
            with pytest.raises(ApiError, match="the server is full") as caught:
                self.admission.admit(exchange, num_tokens, PARAMS)
            assert caught.value.status_code == 503
            assert "Retry-After" in (caught.value.headers or {})
        else:
            self.held.append(self.admission.admit(exchange, num_tokens, PARAMS))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), reason=st.sampled_from(["abort", "error"]), times=st.integers(1, 2))
    def release(self, data: st.DataObject, reason: str, times: int) -> None:
        ticket = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        for _ in range(times):
            ticket.release(BackendError("broken") if reason == "error" else None)
        self.ended[reason] += 1

    @rule(number=st.integers(0, 2))
    def close_exchange(self, number: int) -> None:
        exchange = self.exchanges[number]
        exchange.close()
        gone = [ticket for ticket in self.held if ticket.exchange is exchange]
        self.held = [ticket for ticket in self.held if ticket.exchange is not exchange]
        self.ended["abort"] += len(gone)

    @property
    def num_tokens(self) -> int:
        return sum(ticket.num_prompt_tokens for ticket in self.held)

    @invariant()
    def counters_are_those_of_the_tickets_held(self) -> None:
        assert (self.admission.num_requests, self.admission.num_tokens) == (len(self.held), self.num_tokens)
        assert sum(len(exchange.tickets) for exchange in self.exchanges) == len(self.held)

    def teardown(self) -> None:
        for exchange in self.exchanges:
            self.ended["abort"] += len(exchange.tickets)
            exchange.close()
        assert (self.admission.num_requests, self.admission.num_tokens) == (0, 0)
        finished = values(self.metrics, "request_success_total", "finished_reason")
        assert {reason: finished[reason] for reason in ("abort", "error")} == {
            reason: self.ended[reason] for reason in ("abort", "error")
        }


TestAdmissionMachine = AdmissionMachine.TestCase


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3), st.booleans()), max_size=20))
def test_counters_return_to_zero_however_tasks_are_cancelled(jobs: list[tuple[int, int, bool]]) -> None:
    """Each job: prompt tokens, turns of the event loop until it ends, and whether it is cancelled before."""
    admission = make_admission(max_queued_requests=5, max_queued_tokens=50)

    async def serve(num_tokens: int, num_turns: int) -> None:
        exchange = Exchange("id", "client")
        try:
            with admission.admit(exchange, num_tokens, PARAMS):
                for _ in range(num_turns):
                    await asyncio.sleep(0)
        finally:
            exchange.close()

    async def run() -> None:
        tasks = [asyncio.create_task(serve(num_tokens, num_turns)) for num_tokens, num_turns, _ in jobs]
        await asyncio.sleep(0)
        for task, (_, _, is_cancelled) in zip(tasks, jobs, strict=True):
            if is_cancelled:
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (admission.num_requests, admission.num_tokens) == (0, 0)
        await asyncio.wait_for(admission.wait_idle(), 10)

    asyncio.run(run())


def test_a_prompt_longer_than_the_queue_is_served_when_it_is_alone() -> None:
    admission = make_admission(max_queued_tokens=10)
    with admission.admit(Exchange("a"), 1000, PARAMS), pytest.raises(ApiError) as caught:
        admission.admit(Exchange("b"), 1, PARAMS)
    assert "max_queued_tokens is 10" in caught.value.message


def test_a_draining_server_lets_nobody_in_and_is_idle_when_the_last_has_left() -> None:
    admission = make_admission()

    async def run() -> None:
        ticket = admission.admit(Exchange("a"), 5, PARAMS)
        admission.drain()
        with pytest.raises(ApiError) as caught:
            admission.admit(Exchange("b"), 5, PARAMS)
        assert caught.value.status_code == 503
        idle = asyncio.create_task(admission.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
        ticket.release()
        await asyncio.wait_for(idle, 10)

    asyncio.run(run())


def test_tokens_of_a_key_are_those_of_its_prompts_and_of_its_answers() -> None:
    admission: Admission = make_admission(tokens_per_minute=100)
    admission.admit(Exchange("a", "one"), 60, PARAMS)
    with pytest.raises(ApiError) as caught:
        admission.admit(Exchange("b", "one"), 41, PARAMS)
    assert caught.value.status_code == 429
    assert int((caught.value.headers or {})["Retry-After"]) in range(1, 61)
    admission.admit(Exchange("c", "one"), 40, PARAMS)
    admission.admit(Exchange("d", "two"), 100, PARAMS)  # another's quota is another


def test_a_prompt_that_no_minute_can_hold_is_told_so_and_not_to_come_again() -> None:
    admission = make_admission(tokens_per_minute=100)
    with pytest.raises(ApiError, match="101 tokens") as caught:
        admission.admit(Exchange("a", "one"), 101, PARAMS)
    assert caught.value.headers == {"x-should-retry": "false"}
