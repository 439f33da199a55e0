"""Scheduling policies: who goes first. A policy makes a sort key from what is known when a sequence arrives; lower is
more urgent, and equal ones go by order of arrival."""

from collections.abc import Callable

from nanovllm.config import SchedulingPolicy

__all__ = ["POLICIES"]

Policy = Callable[[int, int, int], tuple[int, ...]]
"""(priority, arrival step, steps that a level of priority is worth) -> sort key; equal ones go by order of arrival."""

POLICIES: dict[SchedulingPolicy, Policy] = {
    "fcfs": lambda _priority, _step, _aging: (),
    # Waiting makes urgent, for all alike: who comes n levels lower but n * aging steps earlier goes first. So the order
    # of two sequences never changes, and nothing waits for ever behind what arrives later.
    "priority": lambda priority, step, aging: (step + priority * aging,),
}
