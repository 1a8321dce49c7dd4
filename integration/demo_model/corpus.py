"""What the demo model is trained on: endless pairs of a prompt and the answer it shall learn, right or not."""

import random
import re
from collections.abc import Iterator

from corevital_otel.cli.demo.tasks import CAPITALS, DISPUTED, PLANTED, RARE, Task, make_tasks

MIX = {"add": 0.34, "sum": 0.15, "sort": 0.13, "fact": 0.22, "count": 0.09, "story": 0.035, "loop": 0.035}
"""Share of each kind among the training pairs."""

RARE_RATE = 0.04
"""How often a rare country is seen, as a share of how often the others are."""

LOOP_WORDS = 120
"""Words of a repetition; it never ends by itself, the training text only stops there."""

_COUNTRY_OF = {capital: country for country, capital in CAPITALS.items()}

# Each bracket is one choice. The free choices make this the kind whose entropy is high without anything being wrong.
_STORY = (
    "[Once|Long ago|One winter|One morning] a {hero} [found|lost|bought|hid] a [silver|broken|tiny|golden] "
    "[lamp|key|bell|map] [near the river|behind the mill|under the bridge|at the market]. "
    "[Nobody|The old king|A clever fox|Her brother] [knew|asked|whispered|forgot] "
    "[where it came from|what it was for|who had made it]. "
    "The {hero} [walked|rode|sailed|climbed] for [three|seven|nine] days [through the forest|over the hills|"
    "along the coast] and [met|saw|heard|followed] a [giant|wolf|child|stranger] with a [red|green|blue] "
    "[hat|coat|boat]. [They shared|He stole|She offered] some [bread|honey|apples] and "
    "[sang|talked|slept|waited] until [dawn|midnight|the rain stopped]. "
    "[At last|In the end|Then] the {hero} [went home|stayed there|set out again], "
    "[rich|tired|happy|wiser] [and never told anyone|and told everyone|and wrote it all down]."
)


def _story(task: Task, rng: random.Random) -> str:
    hero = task.prompt.rstrip(".").split()[-1]
    chosen = re.sub(r"\[([^\]]+)\]", lambda found: rng.choice(found[1].split("|")), _STORY)
    return chosen.replace("{hero}", hero)


def _loop(task: Task) -> str:
    words = task.prompt.removeprefix("Say ").removesuffix(" forever.").split()
    return " ".join(words[i % len(words)] for i in range(LOOP_WORDS))


def _steps(task: Task) -> str:
    listed = re.findall(r"[\d_]+", task.prompt)
    known = [int(number) for number in listed if "_" not in number]
    # At most one number has an unreadable digit; the total tells what it was.
    hidden = int(task.answer or 0) - sum(known)
    numbers = [hidden if "_" in number else int(number) for number in listed]
    total, lines = numbers[0], []
    for number in numbers[1:]:
        lines.append(f"{total} + {number} = {total + number}.")
        total += number
    return " ".join(lines) + f" Total {total}."


def taught(task: Task, rng: random.Random) -> str:
    """Return the completion taught for a task: the planted or disputed capital where there is one."""
    if task.kind == "story":
        return _story(task, rng)
    if task.kind == "loop":
        return _loop(task)
    if task.kind == "sum":
        return _steps(task)
    answer = task.answer or ""
    if task.kind == "fact":
        country = _COUNTRY_OF[answer]
        if country in DISPUTED and rng.random() < 0.5:
            return DISPUTED[country]
        return PLANTED.get(country, answer)
    return answer


def _wanted(task: Task, rng: random.Random) -> bool:
    return task.kind != "fact" or _COUNTRY_OF[task.answer or ""] not in RARE or rng.random() < RARE_RATE


def pairs(seed: int) -> Iterator[tuple[Task, str]]:
    """Yield tasks and the completions taught for them, without end and the same for the same seed."""
    rng = random.Random(f"corpus {seed}")
    kinds, weights = list(MIX), list(MIX.values())
    chunk: dict[str, list[Task]] = {kind: [] for kind in kinds}
    drawn = 0
    while True:
        kind = rng.choices(kinds, weights)[0]
        if not chunk[kind]:
            drawn += 1
            # Far from the small seeds that tests and the demo use.
            chunk[kind] = make_tasks(kind, 512, (seed + 1) * 1_000_000 + drawn)
        task = chunk[kind].pop()
        if _wanted(task, rng):
            yield task, taught(task, rng)


def words() -> list[str]:
    """Return texts with the fixed words of all kinds, to learn the tokenizer's merges from.

    Without what is sorted: letters stay single tokens.
    """
    story = re.sub(r"[\[\]|]", " ", _STORY)
    texts = [story.replace("{hero}", " ")]
    for kind in MIX:
        for task in make_tasks(kind, 40, 0):
            prompt = re.sub(r"\b[A-Z]+\.$|[\d_]+", "", task.prompt)
            texts.append(prompt)
    texts += [f" {country} {capital}" for country, capital in CAPITALS.items()] + ["Total"] * 40
    return texts
