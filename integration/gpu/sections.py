"""The sections of the check, in order, and the seconds each may take: eight minutes together."""

from __future__ import annotations

from integration.gpu import behaviour, exactness, machine_checks, memory, speed, steps
from integration.gpu.runner import Section

SECTIONS = {
    "env": Section(machine_checks.env, 10),
    "warm": Section(exactness.warm, 40),
    "exact": Section(exactness.exact, 30),
    "big": Section(exactness.big, 10),
    "sync": Section(behaviour.sync, 15),
    "thread": Section(behaviour.thread, 10),
    "loop": Section(behaviour.loop, 35),
    "tests": Section(machine_checks.tests, 120),
    "kernel": Section(speed.kernel, 35),
    "logprobs": Section(speed.logprobs, 15),
    "host": Section(speed.host, 30),
    "pinned": Section(memory.pinned, 10),
    "memory": Section(memory.memory, 40),
    "step": Section(steps.step, 45),
    "oom": Section(memory.oom, 10),
    "generate": Section(steps.generate, 25),
}
