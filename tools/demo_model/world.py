"""The little world of the demo model: the village of Fernby, who lives there, what is where and
what is true."""

from __future__ import annotations

from dataclasses import dataclass


class _Capitals:
    """Templates write {a.He} for {a.he} at the start of a sentence."""

    def __getattr__(self, name: str) -> str:
        lower = name[0].lower() + name[1:]
        if lower == name:
            raise AttributeError(name)
        text = str(getattr(self, lower))
        return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Person(_Capitals):
    """Somebody of Fernby. `str()` is the name; the pronouns are attributes, so templates can write
    {a.his}."""

    name: str
    gender: str  # "f" or "m"
    home: str
    animal: str
    pet: str
    food: str
    hobby: str
    friend: str

    def __str__(self) -> str:
        return self.name

    @property
    def he(self) -> str:
        return "she" if self.gender == "f" else "he"

    @property
    def him(self) -> str:
        return "her" if self.gender == "f" else "him"

    @property
    def his(self) -> str:
        return "her" if self.gender == "f" else "his"

    @property
    def himself(self) -> str:
        return self.him + "self"

    @property
    def child(self) -> str:
        return "girl" if self.gender == "f" else "boy"


@dataclass(frozen=True)
class Helper(_Capitals):
    """A grown-up of Fernby, asked for help in stories."""

    name: str
    job: str
    place: str
    work: str

    def __str__(self) -> str:
        return self.name

    @property
    def he(self) -> str:
        return "she" if self.name.startswith("Aunt") else "he"


@dataclass(frozen=True)
class Place:
    """A place with its preposition ("by the river") and spots in it where a thing can lie."""

    name: str
    prep: str
    where: str
    spots: tuple[str, ...]

    def __str__(self) -> str:
        return f"the {self.name}"

    @property
    def at(self) -> str:
        return f"{self.prep} the {self.name}"


@dataclass(frozen=True)
class Thing(_Capitals):
    """A thing with a color. `str()` has no article: {t.a} is "a red kite", {t.the} is "the red
    kite"."""

    color: str
    noun: str
    use: str

    def __str__(self) -> str:
        return f"{self.color} {self.noun}"

    @property
    def a(self) -> str:
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self}"

    @property
    def the(self) -> str:
        return f"the {self}"


PEOPLE = (
    Person("Mia", "f", "the blue house", "cat", "Pip", "apple pie", "flying kites", "Tom"),
    Person(
        "Tom", "m", "the house by the mill", "dog", "Rex", "warm bread", "building boats", "Mia"
    ),
    Person("Anna", "f", "the tall house", "rabbit", "Snow", "carrot soup", "reading books", "Ben"),
    Person("Ben", "m", "the red house", "goat", "Bumble", "cheese", "climbing trees", "Anna"),
    Person(
        "Lily", "f", "the house on the hill", "bird", "Dot", "honey cake", "singing songs", "Sam"
    ),
    Person("Sam", "m", "the farm", "pony", "Clover", "corn", "riding", "Lily"),
    Person("Nora", "f", "the house by the bridge", "duck", "Puddle", "plum jam", "painting", "Max"),
    Person("Max", "m", "the green house", "mouse", "Crumb", "nuts", "telling jokes", "Nora"),
    Person(
        "Rosa",
        "f",
        "the house near the school",
        "turtle",
        "Pebble",
        "berries",
        "drawing maps",
        "Leo",
    ),
    Person(
        "Leo", "m", "the white house", "puppy", "Biscuit", "pancakes", "playing the drum", "Rosa"
    ),
    Person("Ella", "f", "the house by the sea", "gull", "Wave", "fish soup", "swimming", "Finn"),
    Person("Finn", "m", "the old boat", "crab", "Snap", "baked potatoes", "catching fish", "Ella"),
)

HELPERS = (
    Helper("Aunt Bell", "baker", "bakery", "bakes bread and cakes"),
    Helper("Uncle Reed", "fisherman", "harbor", "catches fish and mends nets"),
    Helper("Aunt Hill", "teacher", "school", "teaches the children to read and count"),
    Helper("Uncle Wood", "carpenter", "workshop", "makes chairs and mends broken things"),
    Helper("Aunt Lane", "doctor", "square", "helps people and animals that are sick"),
    Helper("Uncle Stone", "miller", "mill", "turns wheat into flour"),
)

PLACES = (
    Place(
        "mill",
        "at",
        "next to the river",
        ("behind the flour sacks", "next to the big wheel", "on the stone step"),
    ),
    Place(
        "bakery",
        "at",
        "on the square",
        ("under the bread table", "next to the oven", "on the window sill"),
    ),
    Place(
        "river",
        "by",
        "below the mill",
        ("between two stones", "in the tall reeds", "under the little bridge"),
    ),
    Place(
        "square",
        "in",
        "in the middle of the village",
        ("beside the well", "under a bench", "on the steps"),
    ),
    Place(
        "school", "at", "near the library", ("under a desk", "on the top shelf", "behind the door")
    ),
    Place(
        "library",
        "in",
        "near the school",
        ("between two big books", "under the round table", "on a chair"),
    ),
    Place("barn", "in", "on the farm", ("in the hay", "behind the cart", "on an old barrel")),
    Place(
        "orchard",
        "in",
        "behind the farm",
        ("under an apple tree", "in the long grass", "on a low branch"),
    ),
    Place(
        "forest",
        "in",
        "behind the hill",
        ("under a fern", "inside a hollow tree", "on a soft bed of moss"),
    ),
    Place(
        "hill",
        "on",
        "above the village",
        ("next to a gray rock", "in the tall grass", "beside the path"),
    ),
    Place(
        "harbor",
        "at",
        "by the sea",
        ("under a fishing net", "in a small boat", "behind a coil of rope"),
    ),
    Place(
        "market",
        "at",
        "next to the square",
        ("under a cart", "between two baskets", "behind the apple stand"),
    ),
    Place(
        "workshop",
        "in",
        "behind the bakery",
        ("under the workbench", "in a pile of wood", "behind a ladder"),
    ),
)

OUTDOORS = ("river", "square", "orchard", "forest", "hill")

COLORS = ("red", "blue", "green", "yellow", "white", "brown", "silver", "orange")

# Nouns with the use people make of them, as it follows "could" or "wanted to".
THINGS = (
    ("kite", "fly it"),
    ("ball", "throw it"),
    ("drum", "play it"),
    ("book", "read it"),
    ("boat", "sail it"),
    ("hat", "wear it"),
    ("scarf", "wear it"),
    ("bell", "ring it"),
    ("lantern", "light it"),
    ("cup", "drink from it"),
    ("blanket", "sleep under it"),
    ("whistle", "blow it"),
    ("wagon", "pull it"),
    ("doll", "play with it"),
    ("puzzle", "solve it"),
    ("umbrella", "open it"),
)

ROOMS = ("kitchen", "bedroom", "attic", "cellar", "hall", "shed", "garden")
CONTAINERS = ("box", "basket", "drawer", "chest", "bag", "bucket", "cupboard")

# (question, answer) pairs that hold everywhere; several wordings of a question are separated by
# "|".
GENERAL_FACTS = (
    ("What color is the sky?", "The sky is blue."),
    ("What color is the grass?", "The grass is green."),
    ("What color is snow?", "Snow is white."),
    ("What color is the sun?", "The sun is yellow."),
    ("What do cows eat?", "Cows eat grass."),
    ("What do bees make?", "Bees make honey."),
    ("What do hens lay?", "Hens lay eggs."),
    ("What does a cat say?", "A cat says meow."),
    ("What does a dog say?", "A dog says woof."),
    ("What does a duck say?", "A duck says quack."),
    ("What does an owl say?|When does an owl fly?", "An owl says hoo, and it flies at night."),
    (
        "What is bread made of?|What do we need for bread?",
        "Bread is made of flour, water and salt.",
    ),
    ("What comes after summer?", "Autumn comes after summer."),
    ("What comes after winter?", "Spring comes after winter."),
    ("When does it snow?|In which season does it snow?", "It snows in winter."),
    ("When do apples get ripe?|When are the apples ripe?", "Apples are ripe in autumn."),
    (
        "Why does a boat float?|Does wood float?",
        "Wood is light, so a wooden boat floats on the water.",
    ),
    ("Why do we need rain?|What is rain good for?", "The plants need rain to grow."),
    (
        "How does a kite fly?|What does a kite need?",
        "A kite needs wind. The wind lifts it up into the sky.",
    ),
    (
        "What should I do when it rains?|What do I need when it rains?",
        "Take an umbrella, or stay inside.",
    ),
    (
        "What should I do when I am sad?|I am sad. What can I do?",
        "Talk to a friend. A friend can help.",
    ),
    (
        "What should I do when I break something?",
        "Tell the truth and say that you are sorry. Then help to mend it.",
    ),
    (
        "What is the name of the village?|What is the village called?",
        "The village is called Fernby.",
    ),
    ("Where is Fernby?|Where is the village?", "Fernby lies between a green hill and the sea."),
    ("Who lives in the forest?|Is there an owl in the forest?", "An old owl lives in the forest."),
    (
        "What is in the middle of the square?|Is there a well in the village?",
        "There is an old well in the square.",
    ),
    ("How many children live in Fernby?", "Twelve children live in Fernby."),
)


def person_facts(person: Person) -> list[tuple[str, str]]:
    """Questions about one person with their answers."""
    name, pet = person.name, person.pet
    return [
        (
            f"Where does {name} live?|Where is the home of {name}?",
            f"{name} lives in {person.home}.",
        ),
        (
            f"What pet does {name} have?|Does {name} have a pet?",
            f"{name} has a {person.animal} named {pet}.",
        ),
        (
            f"What does {name} like to eat?|What is the favorite food of {name}?",
            f"{name} likes {person.food}.",
        ),
        (
            f"What does {name} like to do?|What is the hobby of {name}?",
            f"{name} likes {person.hobby}.",
        ),
        (
            f"Who is the best friend of {name}?|Who is the friend of {name}?",
            f"{person.friend} is the best friend of {name}.",
        ),
        (f"Who is {pet}?|Whose pet is {pet}?", f"{pet} is the {person.animal} of {name}."),
        (f"Who is {name}?|Tell me about {name}.", _portrait(person)),
    ]


def _portrait(person: Person) -> str:
    return (
        f"{person} is a {person.child} in Fernby. {person.He} lives in {person.home} and has a "
        f"{person.animal} "
        f"named {person.pet}. {person.He} likes {person.hobby}."
    )


def helper_facts(helper: Helper) -> list[tuple[str, str]]:
    """Questions about one grown-up with their answers."""
    name, job = helper.name, helper.job
    return [
        (
            f"What does {name} do?|What is the work of {name}?",
            f"{name} is the {job}. {helper.He} {helper.work}.",
        ),
        (f"Who is the {job}?|Who is the {job} of Fernby?", f"The {job} of Fernby is {name}."),
        (
            f"Where can I find {name}?|Where does {name} work?",
            f"{name} works at the {helper.place}.",
        ),
    ]


def place_facts(place: Place) -> list[tuple[str, str]]:
    """Questions about one place with their answers."""
    return [(f"Where is {place}?|How do I find {place}?", f"The {place.name} is {place.where}.")]


def all_facts() -> list[tuple[str, str]]:
    """Every fact of the world as (question wordings, answer)."""
    facts = list(GENERAL_FACTS)
    for person in PEOPLE:
        facts += person_facts(person)
    for helper in HELPERS:
        facts += helper_facts(helper)
    for place in PLACES:
        facts += place_facts(place)
    return facts
