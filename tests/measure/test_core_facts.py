"""Facts of the engine's core, which come beside a sequence's frames and end, in any order."""

import pytest

from corevital.frames.lifecycle import CoreFacts, Finished


def ended(**core):
    return Finished(reason="stop", token_ids=(), end_ns=1, core=CoreFacts(**core))


def test_facts_before_the_end_take_precedence_over_the_frontends(kit):
    scene = kit.Scene()
    scene.admit()
    scene.assembler.facts(7, CoreFacts(queue_s=1.0, preemptions=2))
    scene.finish(7, ended(queue_s=9.0, stop_reason="stop_string"))
    [report] = scene.reports
    assert report.outcome.core == CoreFacts(queue_s=1.0, preemptions=2, stop_reason="stop_string")


def test_without_facts_the_frontends_stay_and_nothing_is_waited_for(kit):
    scene = kit.Scene()
    scene.admit()
    scene.finish(7, ended(queue_s=9.0))
    [report] = scene.reports
    assert report.outcome.core == CoreFacts(queue_s=9.0)


def test_once_a_core_has_sent_facts_those_of_the_next_sequences_are_waited_for(kit):
    scene = kit.Scene()
    for key in (7, 8, 9):
        scene.admit(key)
    scene.assembler.facts(7, CoreFacts(queue_s=1.0))
    for key in (7, 8, 9):
        scene.finish(key, ended())
    assert [report.admitted.request_id for report in scene.reports] == ["r7"]
    scene.now = 0.2
    assert scene.assembler.tick(scene.now) == pytest.approx(0.05)
    scene.assembler.facts(8, CoreFacts(queue_s=3.0))
    scene.turn()
    scene.now = 0.25
    scene.turn()
    found = {report.admitted.request_id: report.outcome.core.queue_s for report in scene.reports}
    assert found == {"r7": 1.0, "r8": 3.0, "r9": None}, "the last one has waited long enough"
    assert scene.lost() == 0


def test_facts_that_are_expected_are_waited_for_until_too_many_sequences_had_none(kit):
    scene = kit.Scene(facts_expected=2)
    for key in (7, 8, 9):
        scene.admit(key)
    for key in (7, 8):
        scene.finish(key, ended())
    assert not scene.reports
    scene.now = 0.25
    scene.turn()
    assert len(scene.reports) == 2
    scene.finish(9, ended())
    assert len(scene.reports) == 3, "this engine sends none"


def test_facts_do_not_shorten_the_wait_for_records(kit):
    output = kit.Output(5, extra=1)
    scene = kit.Scene()
    scene.admit()
    scene.assembler.finish(7, output.finished())
    scene.assembler.facts(7, CoreFacts(queue_s=1.0))
    scene.now = 1.0
    scene.turn()
    assert not scene.reports
    for step in output.steps():
        scene.assembler.frame(step)
    scene.turn()
    [report] = scene.reports
    assert (report.incomplete, report.outcome.core.queue_s) == (False, 1.0)


def test_records_that_come_late_are_waited_for_longer_than_facts(kit):
    output = kit.Output(5)
    scene = kit.Scene()
    scene.admit(1)
    scene.admit()
    scene.assembler.facts(1, CoreFacts())
    scene.assembler.finish(7, output.finished())
    scene.now = 0.5
    scene.turn()
    assert not scene.reports
    scene.now = 2.0
    scene.turn()
    assert [report.incomplete for report in scene.reports] == [True]


def test_later_facts_add_to_earlier_ones(kit):
    scene = kit.Scene()
    scene.admit()
    scene.assembler.facts(7, CoreFacts(queue_s=1.0, prefill_s=1.0))
    scene.assembler.facts(7, CoreFacts(prefill_s=2.0, decode_s=3.0))
    scene.finish(7, ended())
    assert scene.reports[0].outcome.core == CoreFacts(queue_s=1.0, prefill_s=2.0, decode_s=3.0)


def test_facts_of_a_sequence_that_never_ends_are_in_its_report(kit):
    scene = kit.Scene()
    scene.admit()
    scene.assembler.facts(7, CoreFacts(queue_s=1.0))
    scene.assembler.close(0.0)
    assert (scene.reports[0].outcome.reason, scene.reports[0].outcome.core.queue_s) == ("abort", 1.0)


def test_facts_of_an_unknown_or_reported_sequence_are_not_counted_as_lost(kit):
    scene = kit.Scene()
    scene.assembler.facts(7, CoreFacts(queue_s=1.0))
    scene.admit()
    scene.assembler.facts(7, CoreFacts())
    scene.finish(7, ended())
    scene.assembler.facts(7, CoreFacts(queue_s=1.0))
    scene.run_out()
    assert len(scene.reports) == 1
    assert scene.lost() == 0


def test_strings_of_facts_are_cut(kit):
    scene = kit.Scene()
    scene.admit()
    scene.assembler.facts(7, CoreFacts(stop_reason="x" * 1000, cached_source="\udcff"))
    scene.finish(7, ended())
    assert scene.reports[0].outcome.core == CoreFacts(stop_reason="x" * 256, cached_source="?")
