"""What `make load` makes of what its clients saw, and how it judges that. `make load` itself runs in minutes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from integration.load.figures import Round, Targets, doubled, judged, lost, ratios, table

SHIPPED = Path(__file__).parents[1] / "load/targets.toml"


def made(folder: Path, first_s: float, *, error: str = "") -> Round:
    requests = [
        {"id": f"chat-{number}", "kind": "chat", "sequences": 1 + number % 2, "first_s": first_s * (1 + number / 100),
         "gaps_s": [0.01, 0.02], "tokens": 10, "error": error if number == 3 else ""}
        for number in range(20)
    ]  # fmt: skip
    requests.append({"id": "", "kind": "chat", "sequences": 1, "gaps_s": [], "tokens": 0, "error": "ConnectError: x"})
    file = folder / "round.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return Round.read(file, 2.0)


def test_a_round_has_its_requests_figures(tmp_path: Path) -> None:
    one = made(tmp_path, 0.1, error="HTTPError: 500")
    assert one.errors == ["HTTPError: 500", "ConnectError: x"]
    assert one.tokens_a_second == 100
    assert one.first_token_ms(0.5) == pytest.approx(110)
    assert one.first_token_ms(0.95) == pytest.approx(119)
    assert one.gap_ms(0.99) == 20
    assert one.sequences().total() == 30, "of the one that has no id nothing is known"


def test_ratios_are_of_the_same_round(tmp_path: Path) -> None:
    plain = [made(tmp_path, seconds) for seconds in (0.1, 0.2, 0.4, 0.1, 0.2, 0.4)]
    measured = [made(tmp_path, seconds * 1.5) for seconds in (0.1, 0.2, 0.4, 0.1, 0.2, 0.4)]
    assert ratios(plain, measured, "first token p95, ms") == pytest.approx([1.5] * 6)
    (line,) = [line for line in table(plain, measured).splitlines() if "first token p95" in line]
    assert line.endswith("| 1.500 (1.500 to 1.500) |")


def test_what_was_sent_once_is_there_once() -> None:
    sent = Counter({"a": 1, "b": 2})
    assert (lost(sent, sent), doubled(sent, sent)) == (0, 0)
    assert (lost(sent, Counter({"a": 1, "b": 1})), doubled(sent, Counter({"a": 1, "b": 1}))) == (1, 0)
    assert (lost(sent, Counter({"a": 2, "b": 2})), doubled(sent, Counter({"a": 2, "b": 2}))) == (0, 1)
    assert (lost(sent, Counter({"b": 2, "c": 1})), doubled(sent, Counter({"b": 2, "c": 1}))) == (1, 1)


@pytest.mark.parametrize(
    ("ratio", "verdict"), [([1.0] * 8, "met"), ([1.1] * 8, "missed"), ([0.9, 1.1] * 4, "not decided")]
)
def test_a_ratio_is_judged_by_its_interval(ratio: list[float], verdict: str) -> None:
    assert judged(ratio, 1.02) == verdict


def test_the_targets_are_a_file(tmp_path: Path) -> None:
    assert Targets.read(SHIPPED).first_token_p95_ratio == 1.02
    (wrong := tmp_path / "targets.toml").write_text("error_share = 0.0\nlots = 1\n")
    with pytest.raises(ValueError, match="missing or unknown: doubled, first_token_p95_ratio, lost, lots"):
        Targets.read(wrong)
