"""A sentiment task made on the spot, for a first run without a network: short invented film reviews and their meaning.

    python recipes/quickstart_task.py        # read a few reviews

A small grammar writes each review and works out its label while it writes: every rule knows what it does to the
polarity of its parts (keep it, turn it round, let one of two parts win). The label never comes from looking at the
words afterwards. Praise and blame are drawn evenly and many rules turn them round, so single words say little about
the label: a model has to read negation, contrast and scope. It does NOT imitate real reviews, and a score on it says
nothing about a score on real text.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

LABEL_NAMES = ("negative", "positive")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4, in this order
MAX_LENGTH = 32  # tokens, [CLS] and [SEP] included; no review of this grammar is longer


@dataclass(frozen=True)
class Review:
    """One review and its label, an index into LABEL_NAMES."""

    text: str
    label: int


@dataclass(frozen=True)
class Phrase:
    """A piece of text and its polarity: 1 praise, -1 blame, 0 for words that take no side."""

    text: str
    polarity: int = 0


def keep(part: int) -> int:
    """The opinion stands: "it is true that A"."""
    return part


def flip(part: int) -> int:
    """The opinion is turned round: "not A", "my friend said that A but I disagree"."""
    return -part


def first(one: int, _: int) -> int:
    """The first of two parts wins: "A although B"."""
    return one


def last(_: int, other: int) -> int:
    """The last of two parts wins: "A but B"; in "everyone who A B", A only says of whom."""
    return other


def not_last(_: int, other: int) -> int:
    """The last of two parts is denied: "nobody who A B"."""
    return -other


@dataclass(frozen=True)
class Rule:
    """A template with {symbol} slots, and what it does to the polarities of its slots.

    Args:
        template: words and punctuation separated by spaces.
        meaning: from the polarities of the slots that take a side, in order, to the polarity of the whole.
        weight: how often the rule is drawn, relative to the other rules of its symbol.
    """

    template: str
    meaning: Callable[..., int]
    weight: float = 1.0

    @property
    def slots(self) -> list[str]:
        """The symbols of the template, in order."""
        return re.findall(r"{(\w+)}", self.template)

    def compose(self, parts: Sequence[Phrase]) -> Phrase:
        """Fill the slots with `parts`, one for each slot in order, and work out the polarity of the whole."""
        opinions = [part.polarity for part in parts if part.polarity != 0]
        texts = iter([part.text for _, part in zip(self.slots, parts, strict=True)])
        return Phrase(re.sub(r"{\w+}", lambda _: next(texts), self.template), self.meaning(*opinions))


def _phrases(words: str, polarity: int = 0) -> tuple[Phrase, ...]:
    return tuple(Phrase(word, polarity) for word in words.split())


LEXICON: dict[str, tuple[Phrase, ...]] = {
    "good": _phrases(
        """good great superb excellent brilliant charming delightful wonderful clever fresh gripping impressive lovely
        memorable moving outstanding polished rewarding satisfying splendid strong stunning stylish subtle terrific
        thrilling touching vivid warm witty beautiful elegant exciting fascinating graceful magnificent""",
        polarity=1,
    ),
    "bad": _phrases(
        """bad awful terrible poor dull boring weak dreadful horrible clumsy stale tedious disappointing forgettable
        annoying bland lifeless messy shallow silly sloppy tiresome ugly uneven wooden predictable pointless painful
        lazy hollow dreary crude confusing appalling pathetic ridiculous""",
        polarity=-1,
    ),
    "liked": _phrases("liked loved enjoyed admired adored praised treasured relished applauded welcomed", polarity=1),
    "hated": _phrases(
        "hated disliked loathed despised detested resented mocked criticised deplored slated", polarity=-1
    ),
    "aspect": _phrases(
        """plot acting ending music dialogue script pacing humour casting editing direction story opening hero villain
        scenery lighting costume soundtrack romance suspense finale title narration photography choreography"""
    ),
    "degree": _phrases("very really truly particularly remarkably quite especially extremely"),
    "person": _phrases("friend sister brother neighbour colleague cousin teacher father mother uncle"),
    "time": _phrases("today yesterday twice recently online alone abroad"),
}

GRAMMAR: dict[str, tuple[Rule, ...]] = {
    "review": (
        Rule("{verdict} .", keep, 4),
        Rule("{verdict} , I saw it {time} .", keep),
    ),
    "verdict": (
        Rule("{clause}", keep, 6),
        Rule("it is true that {clause}", keep),
        Rule("it is wrong to say that {clause}", flip),
        Rule("I do not think that {clause}", flip, 0.5),
        Rule("my {person} said that {clause} and I agree", keep),
        Rule("my {person} said that {clause} but I disagree", flip),
        Rule("{clause} but {clause}", last),
        Rule("{clause} , yet {clause}", last),
        Rule("although {clause} , {clause}", last, 2),
        Rule("{clause} although {clause}", first, 2),
        Rule("everyone who {verb} the {aspect} {verb} the {aspect}", last),
        Rule("nobody who {verb} the {aspect} {verb} the {aspect}", not_last),
        # Below, the two parts come from one list and agree, so that the last of them speaks for both.
        Rule("not only was the {aspect} {good} but also {good}", last, 0.5),
        Rule("not only was the {aspect} {bad} but also {bad}", last, 0.5),
        Rule("the {aspect} was both {good} and {good}", last, 0.75),
        Rule("the {aspect} was both {bad} and {bad}", last, 0.75),
        Rule("the {aspect} was neither {good} nor {good}", not_last, 0.75),
        Rule("the {aspect} was neither {bad} nor {bad}", not_last, 0.75),
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


def reviews(count: int, seed: int) -> list[Review]:
    """Write `count` different reviews, negative and positive in turn, so that every stretch of them is balanced.

    Args:
        count: number of reviews, 0 or more.
        seed: the same seed gives the same reviews, and a longer list begins with the shorter one. Two seeds may write
            some of the same reviews: take rows to train on and rows to test on from one call of `splits`.

    Raises:
        ValueError: `count` is negative.
    """
    if count < 0:
        raise ValueError(f"reviews needs a count of 0 or more, got {count}. A split cannot have fewer than no rows.")
    rng = random.Random(seed)  # noqa: S311 - for reviews, not for secrets
    written: dict[str, int] = {}
    while len(written) < count:
        phrase = _Writer(rng).write("review")
        text = re.sub(r" ([.,])", r"\1", phrase.text[0].upper() + phrase.text[1:])
        label = int(phrase.polarity > 0)
        if label == len(written) % 2:
            written.setdefault(text, label)
    return [Review(text, label) for text, label in written.items()]


def splits(train: int, validation: int, unlabelled: int = 0, seed: int = 0) -> dict[str, list[Review]]:
    """Write the rows of each split, no text in two of them, each balanced to within one row.

    The validation rows do not change with the other sizes, and the training rows do not change with `unlabelled`.

    Raises:
        ValueError: a size is negative.
    """
    sizes = {"validation": validation, "train": train, "unlabelled": unlabelled}
    negative = {name: size for name, size in sizes.items() if size < 0}
    if negative:
        raise ValueError(f"splits needs sizes of 0 or more, got {negative}. Give 0 for a split you do not want.")
    rows = iter(reviews(sum(sizes.values()), seed))
    return {name: [next(rows) for _ in range(size)] for name, size in sizes.items()}


def dataset(train: int, validation: int, unlabelled: int = 0, seed: int = 0) -> DatasetDict:
    """The splits as datasets: columns `text` and `label`; a split `unlabelled`, if asked for, has `text` alone."""
    labelled = Features({"text": Value("string"), "label": ClassLabel(names=list(LABEL_NAMES))})
    rows = splits(train, validation, unlabelled, seed)
    made = DatasetDict()
    for name in ("train", "validation"):
        columns = {"text": [row.text for row in rows[name]], "label": [row.label for row in rows[name]]}
        made[name] = Dataset.from_dict(columns, features=labelled)
    if unlabelled:
        texts = [row.text for row in rows["unlabelled"]]
        made["unlabelled"] = Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
    return made


def vocabulary() -> list[str]:
    """The special tokens, then every word and mark the grammar can write, lower case, in alphabetical order."""
    templates = [re.sub(r"{\w+}", "", rule.template) for rules in GRAMMAR.values() for rule in rules]
    lexicon = [word.text for words in LEXICON.values() for word in words]
    return [*SPECIAL_TOKENS, *sorted({word.lower() for text in templates + lexicon for word in text.split()})]


def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the grammar's closed vocabulary: [CLS] words and marks [SEP], in lower case."""
    ids = {word: place for place, word in enumerate(vocabulary())}
    pad, unknown, start, end, mask = SPECIAL_TOKENS
    words = Tokenizer(WordLevel(ids, unk_token=unknown))
    words.normalizer = Lowercase()
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B {end}",
        special_tokens=[(start, ids[start]), (end, ids[end])],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token=pad,
        unk_token=unknown,
        cls_token=start,
        sep_token=end,
        mask_token=mask,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def main() -> None:
    """Print a few reviews with their labels."""
    for review in reviews(count=24, seed=0):
        print(f"{LABEL_NAMES[review.label]:10}{review.text}")


if __name__ == "__main__":
    main()
