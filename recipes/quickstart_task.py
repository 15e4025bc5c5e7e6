"""A sentiment task made on the spot, for a first run without a network: short invented film reviews and their meaning.

Use: `from quickstart_task import dataset, tokenizer`; or `python recipes/quickstart_task.py` to read a few reviews.

A small grammar writes each review and works out its label while it writes: every rule knows what it does to the
polarity of its parts (keep it, turn it round, let one part win, call it mixed). The label never comes from looking at
the words afterwards. Praise and blame are drawn evenly and about half of the rules turn them round, so single words say
little about the label; a model has to read negation, contrast and scope.
It does NOT imitate real reviews, and a score on it says nothing about a score on real text.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

LABEL_NAMES = ("negative", "positive")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 48  # tokens, with [CLS] and [SEP]; the longest possible review has fewer (tests/test_quickstart_task.py)


@dataclass(frozen=True)
class Review:
    """One review and its label, an index into LABEL_NAMES."""

    text: str
    label: int


@dataclass(frozen=True)
class Phrase:
    """A piece of text and its polarity: -1 blame, 0 mixed or no opinion, 1 praise."""

    text: str
    polarity: int = 0


# What a rule does to the polarities of its opinionated parts, in the order in which they are written.


def keep(part: int) -> int:
    """The opinion stands: "I think that A"."""
    return part


def flip(part: int) -> int:
    """The opinion is turned round: "not A"; what is mixed stays mixed."""
    return -part


def first(one: int, _: int) -> int:
    """The first part wins: "A although B"."""
    return one


def last(_: int, other: int) -> int:
    """The last part wins: "A but B", "everyone who A, B"."""
    return other


def not_last(_: int, other: int) -> int:
    """The last part wins and is denied, the first only says of whom: "nobody who A, B"."""
    return -other


def both(one: int, other: int) -> int:
    """Both parts count: agreement stands, disagreement is mixed."""
    return one if one == other else 0


def neither(one: int, other: int) -> int:
    """Both parts are denied: "neither A nor B"; "neither good nor bad" is mixed."""
    return both(-one, -other)


def nothing() -> int:
    """There is no opinion in it: openings and asides."""
    return 0


@dataclass(frozen=True)
class Rule:
    """A template whose {slots} are symbols of the grammar, and what it does to their polarities.

    Args:
        template: words and punctuation separated by spaces, with {symbol} slots.
        meaning: from the polarities of the opinionated slots, in order, to the polarity of the whole.
        weight: how often the rule is drawn, relative to the other rules of its symbol.
    """

    template: str
    meaning: Callable[..., int]
    weight: float = 1.0

    @property
    def slots(self) -> list[str]:
        """The symbols of the template, in order."""
        return re.findall(r"{(\w+)}", self.template)

    def compose(self, parts: list[Phrase]) -> Phrase:
        """Fill the slots with `parts`, in order, and work out the polarity of the whole."""
        opinions = [part.polarity for slot, part in zip(self.slots, parts, strict=True) if slot not in PLAIN_SYMBOLS]
        texts = iter(parts)
        text = re.sub(r"{\w+}", lambda _: next(texts).text, self.template)
        return Phrase(text, self.meaning(*opinions))


GOOD = [
    "good",
    "great",
    "superb",
    "excellent",
    "brilliant",
    "charming",
    "delightful",
    "wonderful",
    "clever",
    "fresh",
    "gripping",
    "impressive",
    "lovely",
    "memorable",
    "moving",
    "outstanding",
    "polished",
    "rewarding",
    "satisfying",
    "splendid",
    "strong",
    "stunning",
    "stylish",
    "subtle",
    "terrific",
    "thrilling",
    "touching",
    "vivid",
    "warm",
    "witty",
    "beautiful",
    "elegant",
    "exciting",
    "fascinating",
    "graceful",
    "magnificent",
]
BAD = [
    "bad",
    "awful",
    "terrible",
    "poor",
    "dull",
    "boring",
    "weak",
    "dreadful",
    "horrible",
    "clumsy",
    "stale",
    "tedious",
    "disappointing",
    "forgettable",
    "annoying",
    "bland",
    "lifeless",
    "messy",
    "shallow",
    "silly",
    "sloppy",
    "tiresome",
    "ugly",
    "uneven",
    "wooden",
    "predictable",
    "pointless",
    "painful",
    "lazy",
    "hollow",
    "dreary",
    "crude",
    "confusing",
    "appalling",
    "pathetic",
    "ridiculous",
]
LIKED = ["liked", "loved", "enjoyed", "admired", "adored", "praised", "treasured", "relished", "applauded", "welcomed"]
HATED = [
    "hated",
    "disliked",
    "loathed",
    "despised",
    "detested",
    "resented",
    "mocked",
    "criticised",
    "deplored",
    "slated",
]

PRAISE, BLAME, SILENT = 1, -1, 0
LEXICON: dict[str, tuple[Phrase, ...]] = {
    symbol: tuple(Phrase(word, polarity) for word in words)
    for symbol, polarity, words in (
        ("good", PRAISE, GOOD),
        ("bad", BLAME, BAD),
        ("liked", PRAISE, LIKED),
        ("hated", BLAME, HATED),
        (
            "aspect",
            SILENT,
            [
                "plot",
                "acting",
                "ending",
                "music",
                "dialogue",
                "script",
                "pacing",
                "humour",
                "casting",
                "editing",
                "direction",
                "story",
                "opening",
                "hero",
                "villain",
                "scenery",
                "lighting",
                "costume",
                "soundtrack",
                "romance",
                "suspense",
                "finale",
                "title",
                "narration",
                "photography",
                "choreography",
            ],
        ),
        (
            "degree",
            SILENT,
            ["very", "really", "truly", "particularly", "remarkably", "quite", "especially", "extremely"],
        ),
        (
            "person",
            SILENT,
            [
                "friend",
                "sister",
                "brother",
                "neighbour",
                "colleague",
                "cousin",
                "teacher",
                "father",
                "mother",
                "uncle",
            ],
        ),
        ("time", SILENT, ["today", "yesterday", "twice", "recently", "online", "alone", "abroad"]),
    )
}
PLAIN_SYMBOLS = frozenset({"aspect", "degree", "person", "time", "opening", "aside"})

GRAMMAR: dict[str, tuple[Rule, ...]] = {
    "review": (
        Rule("{verdict} .", keep, 4),
        Rule("{verdict} , I saw it {time} .", keep),
    ),
    "verdict": (
        Rule("{clause}", keep, 6),
        Rule("my {person} said that {clause} and I agree", keep),
        Rule("my {person} said that {clause} but I disagree", flip),
        Rule("it is true that {clause}", keep),
        Rule("it is wrong to say that {clause}", flip),
        Rule("{clause} but {clause}", last, 2),
        Rule("although {clause} , {clause}", last, 2),
        Rule("{clause} although {clause}", first, 2),
        Rule("not only was the {aspect} {good} but also {good}", both, 0.5),
        Rule("not only was the {aspect} {bad} but also {bad}", both, 0.5),
        Rule("the {aspect} was neither {good} nor {good}", neither, 0.75),
        Rule("the {aspect} was neither {bad} nor {bad}", neither, 0.75),
        Rule("the {aspect} was both {good} and {good}", both, 0.75),
        Rule("the {aspect} was both {bad} and {bad}", both, 0.75),
        Rule("everyone who {verb} the {aspect} {verb} the {aspect}", last),
        Rule("nobody who {verb} the {aspect} {verb} the {aspect}", not_last),
    ),
    "clause": (
        Rule("the {aspect} was {adjective}", keep, 5),
        Rule("the {aspect} was {degree} {adjective}", keep, 4),
        Rule("the {aspect} was nothing but {adjective}", keep),
        Rule("the {aspect} was not {adjective}", flip),
        Rule("the {aspect} was not {degree} {adjective}", flip),
        Rule("the {aspect} was hardly {adjective}", flip),
        Rule("the {aspect} was anything but {adjective}", flip),
        Rule("I {verb} the {aspect}", keep, 5),
        Rule("I never {verb} the {aspect}", flip),
        Rule("nobody {verb} the {aspect}", flip),
    ),
    "adjective": (Rule("{good}", keep), Rule("{bad}", keep)),
    "verb": (Rule("{liked}", keep), Rule("{hated}", keep)),
}


@dataclass
class _Writer:
    """Draws one review from the grammar; no word of the lexicon appears twice in it."""

    rng: random.Random
    used: set[str] = field(default_factory=set)

    def write(self, symbol: str) -> Phrase:
        """Draw a phrase for `symbol`, parts first, so that text and meaning grow together."""
        if symbol in LEXICON:
            word = self.rng.choice([word for word in LEXICON[symbol] if word.text not in self.used])
            self.used.add(word.text)
            return word
        rules = GRAMMAR[symbol]
        rule = self.rng.choices(rules, weights=[rule.weight for rule in rules])[0]
        return rule.compose([self.write(slot) for slot in rule.slots])


def _spell(text: str) -> str:
    """Close up punctuation and begin each sentence with a capital letter."""
    closed = re.sub(r" ([.,])", r"\1", text)
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in closed.split(". "))


def reviews(count: int, seed: int) -> list[Review]:
    """Write `count` different reviews; the classes are equally frequent, to within one review.

    Args:
        count: number of reviews, 0 or more.
        seed: the same seed gives the same reviews, and a longer list starts with the shorter one of the same seed.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(
            f"reviews needs a count of 0 or more, got {count}. Ask for as many rows as you want to train on."
        )
    rng = random.Random(seed)  # noqa: S311 - reviews, not secrets
    written: dict[str, int] = {}
    while len(written) < count:
        wanted = len(written) % len(LABEL_NAMES)
        phrase = _Writer(rng).write("review")
        text = _spell(phrase.text)
        if (phrase.polarity > 0) == wanted and text not in written:
            written[text] = wanted
    return [Review(text, label) for text, label in written.items()]


def main() -> None:
    for review in reviews(30, 0):
        print(f"{LABEL_NAMES[review.label]:8}  {review.text}")


if __name__ == "__main__":
    main()
