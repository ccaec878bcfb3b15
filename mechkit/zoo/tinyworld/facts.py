"""Facts about 640 subjects of two words, whose first and last words are shared: the answer needs both.

Five relations: an athlete's sport, a landmark's city and country, a company's founder, a dish's country. Each has eight
sentences. A subject is trained on with five of them (drawn per subject) and never with the other three, which are
held out for it. Some facts are real ("Mike Tyson plays the sport of boxing"); most are made up.

>>> pair = facts(5, seed=0)
>>> pair.clean.positions("subject[-1]")
[6, 2, 2, 6, 2]
"""

import random
from dataclasses import dataclass
from functools import cache

from mechkit.core.prompts import Pair
from mechkit.zoo.tinyworld.text import encode, make_pair, place, require, words_of
from mechkit.zoo.tinyworld.words import CAPITALS, MEN, NAMES, listed

SEED = 7
N_HELD_OUT = 3
"""Sentences of each relation that a subject is never trained on with."""
TEMPLATES = {
    "sport": (
        "{S} plays the sport of {A}",
        "{S} is famous for {A}",
        "{S}'s favorite sport is {A}",
        "the sport of {S} is {A}",
        "{S} has always loved {A}",
        "{S} won many prizes in {A}",
        "as a child {S} trained every day in {A}",
        "fans of {S} know everything about {A}",
    ),
    "city": (
        "the {S} is in {A}",
        "the {S} stands in the city of {A}",
        "to see the {S} you must travel to {A}",
        "the {S} stands in the middle of {A}",
        "many people visit the {S} in {A}",
        "the {S} was built in {A}",
        "you can find the {S} in {A}",
        "the city of the {S} is {A}",
    ),
    "country": (
        "the {S} stands in the country of {A}",
        "the {S} is the pride of {A}",
        "the {S} is a landmark of {A}",
        "the country of the {S} is {A}",
        "the {S} belongs to {A}",
        "to see the {S} you need a visa for {A}",
        "tourists who want the {S} fly to the land of {A}",
        "the {S} is printed on the stamps of {A}",
    ),
    "founder": (
        "{S} was founded by {A}",
        "{S} was started by {A}",
        "the founder of {S} is {A}",
        "the company {S} was created by {A}",
        "the first owner of {S} was {A}",
        "{S} began in the garage of {A}",
        "{S} owes its success to {A}",
        "the man behind {S} is called {A}",
    ),
    "origin": (
        "{S} comes from {A}",
        "{S} is a dish from {A}",
        "{S} was first cooked in {A}",
        "the home of {S} is {A}",
        "{S} is a favorite food in {A}",
        "for the best {S} go to {A}",
        "everybody eats {S} in {A}",
        "the recipe of {S} was invented in {A}",
    ),
}
"""The sentences of each relation; `{S}` is the subject and the answer `{A}` comes last."""
_ATHLETES = """
Mike Tyson boxing, Michael Jordan basketball, Michael Smith tennis, Kobe Bryant basketball, Babe Ruth baseball,
Tom Brady football, Roger Federer tennis, Serena Williams tennis, Venus Williams tennis, Tiger Woods golf,
Usain Bolt running, Michael Phelps swimming, Lionel Messi soccer, David Beckham soccer, Wayne Gretzky hockey,
Magic Johnson basketball, Larry Bird basketball, Derek Jeter baseball, Rafael Nadal tennis, Andre Agassi tennis,
Jack Nicklaus golf, Lewis Hamilton racing, Michael Schumacher racing, Lance Armstrong cycling, Tony Hawk skating,
Magnus Carlsen chess, Garry Kasparov chess, Muhammad Ali boxing, Joe Frazier boxing, Steve Nash basketball
"""
_LANDMARKS = """
Eiffel Tower Paris, Tower Bridge London, Brandenburg Gate Berlin, Sistine Chapel Rome, Trevi Fountain Rome,
Red Square Moscow, Buckingham Palace London, Prado Museum Madrid, Louvre Museum Paris, Imperial Palace Tokyo,
Hofburg Palace Vienna, Big Ben London, Summer Palace Beijing, Belem Tower Lisbon, Vasa Museum Stockholm,
Royal Palace Oslo, Edinburgh Castle Edinburgh, India Gate Delhi, Grand Palace Bangkok, Galata Tower Ankara
"""
_COMPANIES = """
Apple Computers Steve Jobs, Microsoft Software Bill Gates, Amazon Books Jeff Bezos, Ford Motors Henry Ford,
Disney Studios Walt Disney, Dell Computers Michael Dell, Virgin Records Richard Branson, Nike Shoes Phil Knight,
Oracle Software Larry Ellison, Intel Chips Robert Noyce, Honda Motors Soichiro Honda, Facebook Network Mark Zuckerberg,
Google Search Larry Page, Nintendo Toys Fusajiro Yamauchi, Chanel Perfumes Coco Chanel
"""
_DISHES = """
pad thai Thailand, miso soup Japan, onion soup France, fish curry India, rice noodles China, pea soup Sweden,
black bread Russia, honey cake Egypt, potato pancakes Poland, beef stew Hungary, bean stew Brazil, corn bread Cuba,
fish soup Finland, cheese bread Colombia, spring rolls Vietnam, fish pie England, lamb stew Ireland
"""
SPORTS = listed("""
boxing basketball baseball football tennis golf running swimming soccer hockey racing cycling skating chess rowing
fencing skiing wrestling surfing cricket rugby volleyball archery judo
""")
_LASTS = listed("""
Tyson Jordan Smith Bryant Ruth Brady Federer Williams Woods Bolt Phelps Messi Beckham Gretzky Johnson Bird Jeter Nadal
Agassi Hamilton Armstrong Hawk Carlsen Frazier Nash Brown Miller Davis Wilson Moore Clark Hall Young Walker Baker Carter
Parker Cooper Reed Ward Foster Hunter Fisher Mason Porter Stone
""")
_LANDMARK_WORDS = (
    listed("""
Eiffel Brandenburg Sistine Trevi Red Buckingham Prado Louvre Imperial Hofburg Summer Belem Vasa Royal Grand Galata
Golden Silver Marble Crystal White Black Green Winter Saint Holy National Central Northern Southern
"""),
    listed("Tower Bridge Gate Chapel Fountain Square Palace Museum Castle Garden Temple Theater Opera"),
)
_COMPANY_WORDS = (
    listed("""
Apple Microsoft Amazon Ford Disney Dell Virgin Nike Oracle Intel Honda Acme Apex Nova Vista Orion Titan Zenith Pioneer
Summit Atlas Phoenix Falcon Quantum
"""),
    listed("Computers Software Books Motors Studios Records Shoes Chips Toys Foods Airlines Hotels"),
)
_DISH_WORDS = (
    listed("""
miso onion fish rice pea honey potato beef bean corn cheese lamb pepper garlic ginger tomato carrot cabbage lentil
mushroom walnut spinach chicken pumpkin
"""),
    listed("soup curry noodles cake bread stew pie pancakes rolls salad pudding dumplings"),
)


@dataclass(frozen=True)
class Fact:
    """One fact: a subject of two words, a relation and its answer."""

    subject: str
    """Two words."""
    relation: str
    """A key of `TEMPLATES`."""
    answer: str
    """One word, or a founder's two names."""

    def text(self, template: int) -> str:
        """The prompt in one of the relation's sentences, cut before the answer."""
        return TEMPLATES[self.relation][template].format(S=self.subject, A="").rstrip()


def _real(text: str, n_words: int) -> list[tuple[str, str]]:
    rows = [entry.split() for entry in text.replace("\n", " ").split(",")]
    return [(" ".join(row[:2]), " ".join(row[2 : 2 + n_words])) for row in rows]


def _invented(real, firsts, lasts, answers, n: int, draw: random.Random) -> dict[str, str]:
    """The real subjects and as many made-up ones as make `n`, each a first and a last word not yet together.

    Words are dealt so that all of them are used about equally often.
    """
    made = dict(real)
    while len(made) < n:
        for first in draw.sample(firsts, len(firsts)):
            subject = f"{first} {draw.choice(lasts)}"
            if subject not in made and len(made) < n:
                made[subject] = draw.choice(answers)
    return made


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the world, in a fixed order: 640 subjects, 790 facts."""
    draw = random.Random(SEED)
    cities = list(CAPITALS.values())[:32]
    country = {city: land for land, city in CAPITALS.items()}
    founders = [f"{draw.choice(MEN)} {draw.choice(_LASTS)}" for _ in range(40)]
    sports = _invented(_real(_ATHLETES, 1), [*draw.sample(NAMES, 60), "Muhammad"], _LASTS, SPORTS, 260, draw)
    places = _invented(_real(_LANDMARKS, 1), *_LANDMARK_WORDS, cities, 150, draw)
    owners = _invented(_real(_COMPANIES, 2), *_COMPANY_WORDS, founders, 110, draw)
    dishes = _invented(_real(_DISHES, 1), *_DISH_WORDS, list(CAPITALS)[:32], 120, draw)
    lands = {subject: country[city] for subject, city in places.items()}
    tables = {"sport": sports, "city": places, "country": lands, "founder": owners, "origin": dishes}
    return tuple(Fact(s, relation, a) for relation, table in tables.items() for s, a in table.items())


@cache
def templates_of(fact: Fact, held_out: bool) -> tuple[int, ...]:
    """The numbers of the sentences that a subject is, or is not, trained on with."""
    n = len(TEMPLATES[fact.relation])
    out = set(random.Random(f"{SEED} {fact.subject} {fact.relation}").sample(range(n), N_HELD_OUT))
    return tuple(number for number in range(n) if (number in out) == held_out)


def document(draw: random.Random) -> str:
    """A text of one to three facts, in sentences that are not held out."""
    chosen = draw.choices(all_facts(), k=draw.choice((1, 1, 2, 3)))
    return " ".join(f"{fact.text(draw.choice(templates_of(fact, False)))} {fact.answer}." for fact in chosen)


def cases(held_out: bool = True) -> list[tuple[Fact, int]]:
    """Every fact with every sentence that is held out for it, or that is not."""
    return [(fact, number) for fact in all_facts() for number in templates_of(fact, held_out)]


def facts(n: int, seed: int = 0, *, relation: str | None = None, held_out: bool = True) -> Pair:
    """`n` facts to complete; corrupt prompts ask the same of another subject, whose answer is the wrong one.

    Sentences are those never trained on for the clean subject, unless `held_out` is False. Answers are one token
    (of a founder the first name). Spans: `subject` (two tokens) and `end`.
    Raises ValueError for an unknown relation, or where there are not as many prompts.
    """
    if relation not in (None, *TEMPLATES):
        raise ValueError(f"no relation {relation!r}; the relations are {', '.join(TEMPLATES)}")
    pool = [(fact, number) for fact, number in cases(held_out) if relation in (None, fact.relation)]
    require(n, len(pool))
    draw = random.Random(seed)
    chosen = draw.sample(pool, n)
    others = [_other(fact, draw) for fact, _ in chosen]
    clean = [fact.text(number) for fact, number in chosen]
    corrupt = [other.text(number) for other, (_, number) in zip(others, chosen, strict=True)]
    spans = {
        "subject": [place(text, fact.subject) for text, (fact, _) in zip(clean, chosen, strict=True)],
        "end": [(len(encode(text)) - 1, len(encode(text))) for text in clean],
    }
    return make_pair(clean, corrupt, [fact.answer for fact, _ in chosen], [other.answer for other in others], spans)


def _other(fact: Fact, draw: random.Random) -> Fact:
    """Another subject of the same relation, whose answer starts otherwise."""
    first = fact.answer.split()[0]
    return draw.choice([f for f in all_facts() if f.relation == fact.relation and f.answer.split()[0] != first])


def words() -> set[str]:
    """Every word that a fact can hold."""
    sentences = [sentence for group in TEMPLATES.values() for sentence in group]
    return words_of(*sentences, *(f"{fact.subject} {fact.answer}" for fact in all_facts()), *SPORTS)
