"""The same tokens with and without the plugin, every sequence complete, and values that agree with vLLM's own.

Judged are requests that run alone: on a GPU the sums of a batch depend on its size, and tokens with them. All requests
together are queued before the first step, so that both engines have the same batches; the share that is equal is shown.
"""

from __future__ import annotations

import re
import time

from integration.gpu_vllm.jobs import Answer, Job
from integration.gpu_vllm.models import Model
from integration.gpu_vllm.pair import Pair, Setup
from integration.gpu_vllm.table import FAIL, PASS, Row
from integration.gpu_vllm.values import TOLERANCE, differences

from corevital_otel.report import Series
from corevital_otel.store.reader import StoredReport, StoreError, StoreReader

_STORE_S = 15
_FULL = {"extra_args": {"corevital_capture": "full"}}


def parity(model: Model, setup: Setup, engines: Pair, sequences: int, tokens: int) -> Row:
    """Run it on engines that have done nothing yet.

    Args:
        model: that is served.
        setup: likewise.
        engines: both.
        sequences: of each kind: greedy, and with a seed.
        tokens: of each at most.
    """
    greedy = {"temperature": 0.0, "max_tokens": tokens}
    sampled = [{"temperature": 0.7, "max_tokens": tokens, "seed": seed} for seed in range(sequences)]
    prompts = model.prompts(sequences) * 2
    alone = Job(prompts, [greedy] * sequences + sampled, "alone")
    together = alone._replace(how="held")
    values = Job(prompts[sequences:], [{**params, "logprobs": 20} for params in sampled], "held")
    plain = [engines.plain.ask(job) for job in (alone, together)]
    plugin = [engines.plugin.ask(_measured(job)) for job in (alone, together, values)]
    notes = []
    equal, equal_together = (_equal(*answers) for answers in zip(plain, plugin[:2], strict=True))
    if equal < len(prompts):
        again = _equal(engines.plain.ask(alone), plain[0])
        unmeasured = [{**params, "extra_args": {"corevital_sample": 0}} for params in alone.params]
        other = _equal(engines.plugin.ask(alone._replace(params=unmeasured)), plain[0])
        notes.append(f"without the plugin a second time {again} are equal, unmeasured requests {other}")
    drafts = _drafts(setup, plugin[1], notes)
    answered = [own for answer in plugin for own in answer.tokens]
    reader = StoreReader(engines.database)
    _wait_for(reader, len(answered))
    complete = _complete(reader, setup, answered)
    series = [_series(reader, number) for number in range(2 * len(prompts), len(answered))]
    found = differences(plugin[2], series, engines.plugin.vocab)
    largest = max(found.items(), key=lambda item: item[1] if item[1] == item[1] else float("inf"))
    is_right = all(value <= TOLERANCE for value in found.values())  # NaN is not
    passed = equal == len(prompts) and complete == len(answered) and is_right and drafts
    cells = {
        "alone: equal": f"{equal} of {len(prompts)}",
        "together: equal": f"{equal_together / len(prompts):.0%}",
        "complete": f"{complete} of {len(answered)}",
        "furthest from vLLM's values": f"{largest[0]}, {largest[1]:.1e}",
    }
    notes += re.findall(r"corevital WARNING: .*|measuring holds .*", engines.plugin.text())[:2]
    return Row(cells, PASS if passed else FAIL, "; ".join(notes))


def _measured(job: Job) -> Job:
    return job._replace(params=[{**params, **_FULL} for params in job.params])


def _equal(first: Answer, second: Answer) -> int:
    return sum(one == other for one, other in zip(first.tokens, second.tokens, strict=True))


def _drafts(setup: Setup, answer: Answer, notes: list[str]) -> bool:
    """Whether drafts were accepted and rejected, where there should be some: else nothing was tested."""
    if "speculative_config" not in setup.engine:
        return True
    made, accepted = (answer.counters.get(f"vllm:spec_decode_num_{what}_tokens", 0) for what in ("draft", "accepted"))
    notes.append(f"{accepted:.0f} of {made:.0f} drafts accepted")
    return 0 < accepted < made


def _wait_for(reader: StoreReader, sequences: int) -> None:
    """Wait until the store has so many; not for long: missing rows are a result."""
    deadline = time.monotonic() + _STORE_S
    while time.monotonic() < deadline:
        try:
            if reader.count() >= sequences:
                return
        except StoreError:
            pass  # not there yet
        time.sleep(0.2)


def _complete(reader: StoreReader, setup: Setup, answered: list[list[int]]) -> int:
    """How many sequences have exactly one row, which is whole; -1 where there are rows of no sequence."""
    by_number: dict[int, list[StoredReport]] = {}
    try:
        rows = reader.list_reports(limit=10 * len(answered))
    except StoreError:  # there is none: nothing was measured
        rows = []
    for row in rows:
        by_number.setdefault(int(row.request_id), []).append(row)
    if not by_number.keys() <= set(range(len(answered))):
        return -1
    return sum(
        [row.output_tokens for row in by_number.get(number, [])] == [len(tokens)]
        and _is_whole(by_number[number][0], setup)
        for number, tokens in enumerate(answered)
    )


def _is_whole(row: StoredReport, setup: Setup) -> bool:
    found = row.summary
    return (
        found.get("corevital.tokens.observed") == row.output_tokens
        and "corevital.incomplete" not in found
        and found.get("corevital.runner") == setup.runner
    )


def _series(reader: StoreReader, number: int) -> Series | None:
    try:
        rows = reader.get(str(number))
    except StoreError:
        return None
    return rows[0].series if rows else None
