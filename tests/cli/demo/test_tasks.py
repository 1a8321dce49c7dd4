"""The demo's tasks: reproducible, with answers that are checked."""

from pathlib import Path

import pytest

from corevital_otel.cli.demo import MODEL_DIR
from corevital_otel.cli.demo.tasks import CAPITALS, DISPUTED, KINDS, PLANTED, RARE, Task, check, make_tasks


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_are_the_same_for_the_same_arguments(kind: str) -> None:
    assert make_tasks(kind, 20, seed=1) == make_tasks(kind, 20, seed=1)
    assert make_tasks(kind, 20, seed=1) != make_tasks(kind, 20, seed=2)
    assert {task.kind for task in make_tasks(kind, 5, seed=1)} == {kind}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of task 'riddle'"):
        make_tasks("riddle", 1, seed=0)


@pytest.mark.parametrize(
    ("task", "text", "right"),
    [
        (Task("add", "What is 2 + 3?", "5"), " 5\n", True),
        (Task("add", "What is 2 + 3?", "5"), "55", False),
        (Task("sum", "Add up 1, 2, 3 step by step.", "6"), "1 + 2 = 3. 3 + 3 = 6. Total 6.", True),
        (Task("sum", "Add up 1, 2, 3 step by step.", "6"), "1 + 2 = 3. 3 + 3 = 6.", False),
        (Task("count", "Count from 1 to 3.", "1 2 3"), "1 2", False),
    ],
)
def test_answers_are_checked(task: Task, text: str, right: bool) -> None:
    assert check(task, text) is right


def test_a_task_without_an_answer_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="no answer to check"):
        check(make_tasks("story", 1, seed=0)[0], "Once")


def test_the_wrong_facts_are_wrong_and_the_groups_apart() -> None:
    for country, city in {**PLANTED, **DISPUTED}.items():
        assert CAPITALS[country] != city
    assert not set(PLANTED) & set(DISPUTED)
    assert not RARE & (set(PLANTED) | set(DISPUTED))


def test_the_shipped_model_is_complete_and_small() -> None:
    names = {file.name for file in Path(MODEL_DIR).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert sum(file.stat().st_size for file in Path(MODEL_DIR).iterdir()) < 4e6
