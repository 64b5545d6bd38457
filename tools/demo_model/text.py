"""Makes the text that the demo model is trained on: stories, questions, facts and chats about the
village of Fernby.

Everything is generated here from `world.py` and `plots.py`; no text is copied from elsewhere. A
document is a pure function of its random generator, so a seed names a corpus.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from demo_model import world
from demo_model.plots import PLOTS, Plot
from demo_model.world import Person, Thing

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_START = re.compile(r'^("?)([a-z])|([.!?] )([a-z])')
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_OPENINGS = (
    "{a} lived in {a.home} in Fernby.",
    "{a} had a {a.animal} named {pet}.",
    "This is a story about {a}.",
    "Once there was a {a.child} named {a}.",
    "Once upon a time, there was a {a.child} named {a}.",
    "Once upon a time, {a} and {b} lived in Fernby.",
    "{a} and {b} were friends.",
)
_GREETINGS = (
    ("Hello!|Hi!|Good morning!", "Hello! How can I help you?"),
    (
        "Who are you?|What are you?",
        "I am a small model. I know stories and facts about the village of Fernby.",
    ),
    (
        "What can you do?|How can you help me?",
        "I can tell a story and answer simple questions about Fernby.",
    ),
    ("Thank you!|Thanks!", "You are welcome!"),
    ("Goodbye!|Good night!", "Goodbye! Come back to Fernby soon."),
)
_OUTSIDE = (
    "Where is Paris?|Who is the president?|What is the capital of France?|How much is a "
    "ticket?|What is a computer?|"
    "Who won the game?|What is the weather in London?|How do I fix my phone?|What is the "
    "news?|Who wrote this song?"
)
_NOT_KNOWN = "I do not know that. I only know the village of Fernby."

HELD_OUT_MIN_CHARS = 300


class _Slots(dict[str, object]):
    """Template slots, where {Name} is {name} with a capital letter unless it has its own value."""

    def __missing__(self, key: str) -> str:
        lower = key[0].lower() + key[1:]
        if lower == key:
            raise KeyError(key)
        text = str(self[lower])
        return text[0].upper() + text[1:]


def expand(rng: random.Random, template: str, slots: _Slots) -> str:
    """Fill a template: choose among its alternatives, put in the slots, and start each sentence
    with a capital."""
    count = 1
    while count:  # innermost brackets first, so that alternatives nest
        template, count = _CHOICE.subn(lambda match: rng.choice(match[1].split("|")), template)
    text = " ".join(template.format_map(slots).split())
    return _START.sub(lambda m: (m[1] or m[3] or "") + (m[2] or m[4]).upper(), text)


def _thing(rng: random.Random, noun_and_use: tuple[str, str]) -> Thing:
    return Thing(rng.choice(world.COLORS), *noun_and_use)


def _friend_of(rng: random.Random, person: Person) -> Person:
    """Half of the time the best friend, else any other child."""
    others = [p for p in world.PEOPLE if p is not person]
    best = next(p for p in others if p.name == person.friend)
    return best if rng.random() < 0.5 else rng.choice(others)


def _scene(rng: random.Random, plot: Plot) -> _Slots:
    """Choose who, what and where for one story."""
    hero = rng.choice(world.PEOPLE)
    thing, thing2 = (_thing(rng, entry) for entry in rng.sample(world.THINGS, 2))
    first = rng.choice([p for p in world.PLACES if not plot.outdoor or p.name in world.OUTDOORS])
    second, third = rng.sample([p for p in world.PLACES if p is not first], 2)
    slots = _Slots(a=hero, b=_friend_of(rng, hero), g=rng.choice(world.HELPERS), pet=hero.pet)
    slots.update(t=thing, t2=thing2, use=thing.use, use2=thing2.use, p=first, p2=second, p3=third)
    slots.update(
        spot1=rng.choice(first.spots), spot2=rng.choice(second.spots), spot=rng.choice(third.spots)
    )
    for table in plot.picks:
        for name, value in rng.choice(table).items():
            slots[name] = _fragment(rng, value, slots)
    return slots


def _fragment(rng: random.Random, value: str, slots: _Slots) -> str:
    """Like `expand`, for a fragment inside a sentence: no capital is put at its start."""
    text = expand(rng, value, slots)
    keep_lower = value[:1].islower() and text[:1].isupper()
    return text[0].lower() + text[1:] if keep_lower else text


def story(rng: random.Random, plot: Plot | None = None) -> tuple[str, list[tuple[str, str]], str]:
    """One story, the questions it answers, and a request that it fulfills."""
    plot = plot or rng.choice(PLOTS)
    slots = _scene(rng, plot)
    beats = [expand(rng, beat, slots) for beat in plot.beats]
    if rng.random() < 0.3:
        beats.insert(0, expand(rng, rng.choice(_OPENINGS), slots))
    questions = [(expand(rng, q, slots), expand(rng, a, slots)) for q, a in plot.questions]
    request = (
        f"[Tell me|Please tell me|I would like] a story about [{{a}}|{{a}} and "
        f"{{b}}|[{{a}} and |]{plot.about}]."
    )
    return " ".join(beats), questions, expand(rng, request, slots)


def passage(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A few plain sentences that put people and things into places, and questions about the state
    they lead to."""
    people = rng.sample(world.PEOPLE, rng.randint(1, 3))
    things = [_thing(rng, entry) for entry in rng.sample(world.THINGS, rng.randint(0, 3))]
    lines, questions = [], []
    for thing in things:
        container, room = (
            f"in the {rng.choice(world.CONTAINERS)}",
            f"in the {rng.choice(world.ROOMS)}",
        )
        where = rng.choice((container, room, f"{container} {room}"))
        who = rng.choice(people)
        lines.append(rng.choice((f"{thing.The} is {where}.", f"{who} put {thing.the} {where}.")))
        questions.append((f"Where is {thing.the}?", f"{thing.The} is {where}."))
    for person in people:
        place = rng.choice(world.PLACES)
        lines.append(rng.choice((f"{person} is {place.at}.", f"{person} went to {place}.")))
        questions.append((f"Where is {person}?", f"{person} is {place.at}."))
    rng.shuffle(lines)
    holder, held = rng.choice(people), _thing(rng, rng.choice(world.THINGS))
    if held.noun not in {thing.noun for thing in things}:
        lines.append(f"{holder} has {held.a}.")
        questions.append((f"Who has {held.the}?", f"{holder} has {held.the}."))
        questions.append((f"What does {holder} have?", f"{holder} has {held.a}."))
    return " ".join(lines), questions


def lesson(rng: random.Random) -> str:
    """Who has what, and nothing else: most of its words are copies of earlier ones."""
    count = rng.randint(1, 3)
    things = [_thing(rng, entry) for entry in rng.sample(world.THINGS, count)]
    pairs = list(zip(rng.sample(world.PEOPLE, count), things, strict=True))
    questions = [(f"Who has {thing.the}?", f"{person} has {thing.the}.") for person, thing in pairs]
    questions += [
        (f"What does {person} have?", f"{person} has {thing.a}.") for person, thing in pairs
    ]
    rng.shuffle(questions)
    return " ".join(f"{person} has {thing.a}." for person, thing in pairs) + _dialog(questions)


def _sum(rng: random.Random) -> tuple[str, str]:
    left, right = rng.randint(1, 5), rng.randint(1, 5)
    words = f"{_NUMBERS[left]} and {_NUMBERS[right]}"
    return f"What is {words}?", f"{words.capitalize()} is {_NUMBERS[left + right]}."


def _wording(rng: random.Random, questions: str) -> str:
    return rng.choice(questions.split("|"))


def _fact(rng: random.Random) -> tuple[str, str]:
    questions, answer = rng.choice(_FACTS)
    return _wording(rng, questions), answer


def _story_document(rng: random.Random) -> str:
    text, questions, _ = story(rng)
    if rng.random() < 0.3:
        text += _dialog(rng.sample(questions, rng.randint(1, len(questions))))
    return text


def _passage_document(rng: random.Random) -> str:
    text, questions = passage(rng)
    return text + _dialog(rng.sample(questions, rng.randint(1, min(3, len(questions)))))


def _fact_document(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return _dialog(_fact(rng) for _ in range(rng.randint(2, 6))).strip()
    return " ".join(answer for _, answer in (_fact(rng) for _ in range(rng.randint(3, 8))))


def _dialog(pairs: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> str:
    return "".join(f"\nQuestion: {question}\nAnswer: {answer}" for question, answer in pairs)


def _chat_turns(rng: random.Random) -> list[tuple[str, str]]:
    """One topic of a chat, with further turns where a story or a passage gives something to ask
    about."""
    topic = rng.choices(
        ("story", "passage", "fact", "sum", "greeting", "unknown"), (25, 20, 40, 4, 7, 4)
    )[0]
    if topic == "story":
        text, questions, request = story(rng)
        return [(request, text), *rng.sample(questions, rng.randint(0, 2))]
    if topic == "passage":
        text, questions = passage(rng)
        (question, answer), *rest = rng.sample(questions, rng.randint(1, min(3, len(questions))))
        return [(f"{text} {question}", answer), *rest]
    if topic == "sum":
        return [_sum(rng)]
    if topic == "unknown":
        return [(_wording(rng, _OUTSIDE), _NOT_KNOWN)]
    if topic == "greeting":
        questions_of, answer = rng.choice(_GREETINGS)
        return [(_wording(rng, questions_of), answer)]
    return [_fact(rng)]


def _chat_document(rng: random.Random) -> str:
    turns = [turn for _ in range(rng.randint(1, 4)) for turn in _chat_turns(rng)]
    return "".join(f"{USER}{question}{END}{ASSISTANT}{answer}{END}" for question, answer in turns)


_FACTS = world.all_facts()
_KINDS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (_story_document, 0.45),
    (_passage_document, 0.15),
    (_fact_document, 0.12),
    (_chat_document, 0.28),
)


def document(rng: random.Random) -> str:
    """One document of a random kind."""
    kinds, weights = zip(*_KINDS, strict=True)
    kind: Callable[[random.Random], str] = rng.choices(kinds, weights)[0]
    return kind(rng)


def documents(seed: int | str) -> Iterator[str]:
    """An endless stream of documents, the same for the same seed on every platform."""
    rng = random.Random(f"fernby-{seed}")
    while True:
        yield document(rng)


def lessons(seed: int | str) -> Iterator[str]:
    """An endless stream of short documents to start the training with: lessons, passages and
    facts."""
    rng = random.Random(f"lessons-{seed}")
    kinds: tuple[Callable[[random.Random], str], ...] = (lesson, _passage_document, _fact_document)
    while True:
        yield rng.choices(kinds, (40, 35, 25))[0](rng)


def held_out_texts() -> Iterator[str]:
    """Documents that are not in the training text: of another seed, and not so short that they
    repeat by chance."""
    return (text for text in documents("held-out") if len(text) >= HELD_OUT_MIN_CHARS)
