"""The classes of image rows: of every kind, in every order, and those that cannot be learnt."""

import pytest
from datasets import ClassLabel, Dataset, Value
from image_toys import COLOURS, rows_of, splits

from hfdistill.images.rows import load_images


def test_labels_of_other_kinds() -> None:
    """Text, numbers and ClassLabels mean the same; classes are counted on the training rows."""
    for labels, feature, names in (
        (["cat", "dog", "cat"], Value("string"), ("cat", "dog")),
        ([2, 0, 1], Value("int64"), ("0", "1", "2")),
        ([True, False, True], Value("bool"), ("False", "True")),
    ):
        found = load_images(splits(rows_of(labels, feature), rows_of(labels[:1], feature)))
        assert found.label_names == names
        assert [names[index] for index in found.train["labels"]] == [str(label) for label in labels]
        assert found.evaluation["labels"][0] == found.train["labels"][0]


def test_rows_are_renumbered_for_a_model() -> None:
    """A teacher that knows the classes in another order would teach every class wrongly."""
    order = ["red", "blue", "green"]
    found = load_images(splits(), label_order=order)
    assert found.label_names == tuple(order)
    assert [order[index] for index in found.train["labels"]] == [COLOURS[i] for i in (0, 1, 2, 0, 1, 2)]
    with pytest.raises(ValueError, match="each class of the data once"):
        load_images(splits(), label_order=["red", "blue", "yellow"])


def test_splits_that_number_classes_differently() -> None:
    """Measured by index, a perfect student would score nothing; given an order, names decide."""
    turned = rows_of([0, 1, 2], ClassLabel(names=["red", "green", "blue"]))
    with pytest.raises(ValueError, match="number the same classes differently") as error:
        load_images(splits(test=turned))
    assert "label_order=['blue', 'green', 'red']" in str(error.value)
    assert load_images(splits(test=turned), label_order=COLOURS).evaluation["labels"][:] == [2, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": rows_of([0, 1], ClassLabel(names=["blue", "yellow"]))}, r"has not: \['yellow'\]"),
        ({"test": rows_of(["cat", "cow"], Value("string"))}, r"has not: \['cat', 'cow'\]"),
        ({"train": rows_of([0, 1])}, r"rows of \['red'\], of which split train has none"),
        ({"test": rows_of([-1, -1, 0])}, "2 of 3 rows of split test have no class"),
        ({"train": rows_of([None, 1, 2, 0])}, "1 of 4 rows of split train have no class"),
        ({"train": rows_of([0.5, 1.0], Value("float32"))}, "one class per row"),
        ({"train": rows_of([-7, 1], Value("int64"))}, "from 0 on, got -7 to 1"),
        ({split: rows_of(["a", "a"], Value("string")) for split in ("train", "test")}, "two classes or more"),
    ],
    ids=["ClassLabel", "text", "not trained", "-1", "None", "numbers", "negative", "one class"],
)
def test_labels_that_cannot_be_learnt(changes: dict[str, Dataset], message: str) -> None:
    """Each of these trains without an error, and measures nonsense."""
    with pytest.raises(ValueError, match=message):
        load_images(splits(**changes))


def test_a_hidden_test_set_does_not_count() -> None:
    """Test rows without labels are usual, and harmless where another split is used."""
    found = load_images(splits(test=rows_of([-1, -1]), validation=rows_of([0, 1, 2])))
    assert found.evaluation["labels"][:] == [0, 1, 2]
