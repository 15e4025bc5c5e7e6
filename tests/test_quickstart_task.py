"""The quickstart's task: the same reviews from the same seed, balanced, with right labels, and not solved by words."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from recipes.quickstart_task import (
    GRAMMAR,
    LABEL_NAMES,
    LEXICON,
    MAX_LENGTH,
    SPECIAL_TOKENS,
    Phrase,
    Rule,
    dataset,
    flip,
    reviews,
    splits,
    tokenizer,
    vocabulary,
)

PRAISE, BLAME = Phrase("the plot was superb", 1), Phrase("the music was dull", -1)


def rule(symbol: str, template: str) -> Rule:
    """Find a rule of the grammar by its template."""
    return next(found for found in GRAMMAR[symbol] if found.template == template)


def phrase(word: str, polarity: int = 0) -> Phrase:
    """A word in a slot of a template."""
    return Phrase(word, polarity)


@pytest.mark.parametrize(
    ("template", "parts", "text", "polarity"),
    [
        ("{clause} but {clause}", (PRAISE, BLAME), "the plot was superb but the music was dull", -1),
        ("{clause} , yet {clause}", (BLAME, PRAISE), "the music was dull , yet the plot was superb", 1),
        ("although {clause} , {clause}", (PRAISE, BLAME), "although the plot was superb , the music was dull", -1),
        ("{clause} although {clause}", (PRAISE, BLAME), "the plot was superb although the music was dull", 1),
        ("it is wrong to say that {clause}", (PRAISE,), "it is wrong to say that the plot was superb", -1),
        ("I do not think that {clause}", (BLAME,), "I do not think that the music was dull", 1),
        (
            "my {person} said that {clause} but I disagree",
            (phrase("friend"), BLAME),
            "my friend said that the music was dull but I disagree",
            1,
        ),
        (
            "my {person} said that {clause} and I agree",
            (phrase("friend"), BLAME),
            "my friend said that the music was dull and I agree",
            -1,
        ),
        (
            "nobody who {verb} the {aspect} {verb} the {aspect}",
            (phrase("liked", 1), phrase("plot"), phrase("hated", -1), phrase("ending")),
            "nobody who liked the plot hated the ending",
            1,
        ),
        (
            "everyone who {verb} the {aspect} {verb} the {aspect}",
            (phrase("liked", 1), phrase("plot"), phrase("hated", -1), phrase("ending")),
            "everyone who liked the plot hated the ending",
            -1,
        ),
        (
            "the {aspect} was neither {bad} nor {bad}",
            (phrase("plot"), phrase("dull", -1), phrase("stale", -1)),
            "the plot was neither dull nor stale",
            1,
        ),
        (
            "not only was the {aspect} {good} but also {good}",
            (phrase("plot"), phrase("witty", 1), phrase("fresh", 1)),
            "not only was the plot witty but also fresh",
            1,
        ),
    ],
)
def test_a_verdict_means_what_a_reader_takes_it_to_mean(
    template: str, parts: tuple[Phrase, ...], text: str, polarity: int
) -> None:
    """A wrong rule would teach every model of the quickstart wrong English, and no accuracy would show it."""
    assert rule("verdict", template).compose(parts) == Phrase(text, polarity)


@pytest.mark.parametrize("found", GRAMMAR["clause"], ids=lambda found: found.template)
def test_a_clause_is_turned_round_by_negation_alone(found: Rule) -> None:
    """Blame in "nothing but dull" is praise in "anything but dull": each clause must know which of the two it is."""
    negated = any(word in f" {found.template} " for word in (" not ", " hardly ", " never ", " nobody ", " anything "))
    parts = [phrase("dull", -1) if slot in {"adjective", "verb"} else phrase("plot") for slot in found.slots]
    assert found.compose(parts).polarity == (1 if negated else -1)


def test_negations_nest() -> None:
    """Two turns bring the opinion back; a model that only spots negations must be wrong here."""
    inner = rule("clause", "nobody {verb} the {aspect}").compose([phrase("liked", 1), phrase("plot")])
    outer = rule("verdict", "I do not think that {clause}").compose([inner])
    assert outer == Phrase("I do not think that nobody liked the plot", 1)


def test_a_rule_wants_one_part_for_each_slot() -> None:
    """A part too many would be dropped from the text and still count in the label."""
    with pytest.raises(ValueError, match="longer"):
        Rule("it is wrong to say that {clause}", flip).compose([PRAISE, BLAME])


def test_same_seed_same_reviews() -> None:
    """A figure of the quickstart can be repeated only if its rows can, whatever else drew random numbers."""
    random.seed(1)
    state = random.getstate()
    written = reviews(60, seed=3)
    assert random.getstate() == state, "the global random state must stay as the user left it"
    random.seed(2)
    assert reviews(90, seed=3)[:60] == written
    assert reviews(60, seed=4) != written


def test_classes_are_balanced_and_texts_differ() -> None:
    """Accuracy is read against 0.5, and a text seen twice in training would count twice."""
    written = reviews(1001, seed=0)
    assert Counter(review.label for review in written) == {0: 501, 1: 500}
    assert len({review.text for review in written}) == 1001


def test_splits_share_no_text() -> None:
    """A review both trained on and tested on would measure memory."""
    rows = splits(train=301, validation=100, unlabelled=200, seed=5)
    assert {name: len(part) for name, part in rows.items()} == {"validation": 100, "train": 301, "unlabelled": 200}
    assert len({review.text for part in rows.values() for review in part}) == 601
    for part in rows.values():
        assert abs(sum(2 * review.label - 1 for review in part)) <= 1
    assert splits(train=50, validation=100, seed=5)["validation"] == rows["validation"], "one test set for all sizes"


@pytest.mark.parametrize("call", [lambda: reviews(-1, 0), lambda: splits(4, -2)])
def test_negative_sizes_are_refused(call) -> None:
    """Without the check, a slip in a size gives an empty split and a training run on nothing."""
    with pytest.raises(ValueError, match="0 or more, got"):
        call()


def test_single_words_do_not_tell_the_label() -> None:
    """The quickstart shows distillation only if the task asks for more than its words: for their order."""
    rows = splits(train=3000, validation=1000, seed=0)
    words = CountVectorizer()
    counts = words.fit_transform([review.text for review in rows["train"]])
    model = LogisticRegression(max_iter=1000).fit(counts, [review.label for review in rows["train"]])
    validation = words.transform([review.text for review in rows["validation"]])
    assert model.score(validation, [review.label for review in rows["validation"]]) < 0.66


def test_dataset_columns() -> None:
    """The Trainer finds the labels by their column, the model card their names by the feature."""
    made = dataset(train=6, validation=4, unlabelled=3)
    assert made.column_names == {"train": ["text", "label"], "validation": ["text", "label"], "unlabelled": ["text"]}
    assert tuple(made["train"].features["label"].names) == LABEL_NAMES
    assert [(row["text"], row["label"]) for row in made["train"]] == [
        (review.text, review.label) for review in splits(train=6, validation=4)["train"]
    ]
    assert set(dataset(train=2, validation=2)) == {"train", "validation"}


def test_every_word_is_known_and_nothing_is_cut() -> None:
    """An [UNK] could hide a "not", and a cut review its verdict."""
    words = tokenizer()
    encoded = words([review.text for review in reviews(2000, seed=1)])
    assert words.unk_token_id not in {token for ids in encoded["input_ids"] for token in ids}

    def longest(symbol: str) -> int:
        if symbol in LEXICON:
            return 1
        return max(
            sum(longest(slot) - 1 for slot in found.slots) + len(found.template.split()) for found in GRAMMAR[symbol]
        )

    assert longest("review") + 2 <= MAX_LENGTH == words.model_max_length


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    """A student's folder holds its tokenizer, and must load without this file and without a network."""
    made = tokenizer()
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "I do not think that the plot was witty, I saw it today."
    assert loaded(text) == made(text)
    assert set(made(text)) == {"input_ids", "attention_mask"}
    assert loaded.tokenize(text) == text.lower().replace(",", " ,").replace(".", " .").split()
    assert loaded(text)["input_ids"][:1] + loaded(text)["input_ids"][-1:] == [loaded.cls_token_id, loaded.sep_token_id]
    assert loaded.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert (loaded.pad_token_id, loaded.mask_token_id, loaded.model_max_length) == (0, 4, MAX_LENGTH)
    assert len(loaded) == len(vocabulary())
