"""The rules that pair layers: what the papers' maps are, and what no map may ever do."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfdistill.layer_map import LayerMap

depths = st.integers(1, 48)
ordered_depths = st.tuples(depths, depths).map(sorted)
fitting_rules = st.sampled_from(
    [
        LayerMap.uniform(),
        LayerMap.uniform(embeddings=False),
        LayerMap.last(),
        LayerMap.last(final=False),
        LayerMap.first(),
        LayerMap.skip(),
        LayerMap.every(1),
    ]
)
layers = st.integers(-60, 60)
any_rule = st.one_of(
    fitting_rules,
    st.integers(1, 9).map(LayerMap.every),
    st.floats(0.01, 1.0).map(LayerMap.dynabert),
    st.builds(LayerMap.explicit, st.lists(st.tuples(layers, layers), min_size=1), embeddings=st.booleans()),
)


@pytest.mark.parametrize(
    ("layer_map", "depths", "expected"),
    [
        (LayerMap.uniform(), (4, 12), ((0, 0), (1, 3), (2, 6), (3, 9), (4, 12))),
        (LayerMap.uniform(embeddings=False), (2, 5), ((1, 3), (2, 5))),
        (LayerMap.last(final=False), (6, 12), ((1, 7), (2, 8), (3, 9), (4, 10), (5, 11))),
        (LayerMap.last(), (2, 12), ((1, 11), (2, 12))),
        (LayerMap.first(), (3, 12), ((1, 1), (2, 2), (3, 3))),
        (LayerMap.skip(), (6, 12), ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10))),
        (LayerMap.every(2), (3, 12), ((1, 2), (2, 4), (3, 6))),
        (LayerMap.explicit([(-1, -1), (0, 0), (1, 4)]), (2, 12), ((2, 12), (0, 0), (1, 4))),
        (LayerMap.explicit([(5, 1), (5, 2)]), (6, 3), ((5, 1), (5, 2))),
    ],
    ids=str,
)
def test_maps_are_the_published_ones(layer_map, depths, expected):
    """The numbers of TinyBERT and PKD, and halves rounded up: a shifted map still trains, only worse."""
    assert layer_map.resolve(*depths) == expected


@pytest.mark.parametrize(
    ("multiplier", "student_depth", "kept"),
    [
        (0.5, 6, [0, 2, 4, 6, 8, 10, 12]),
        (0.75, 9, [0, 1, 2, 4, 5, 6, 8, 9, 10, 12]),
        (1.0, 12, list(range(13))),
    ],
)
def test_dynabert_keeps_the_layers_of_its_code(multiplier, student_depth, kept):
    """DynaBERT's own code gives these lists for 12 layers; the map must pair them in order."""
    assert LayerMap.dynabert(multiplier).resolve(student_depth, 12) == tuple(enumerate(kept))


@given(fitting_rules, ordered_depths)
def test_rules_strictly_increase_and_stay_in_range(layer_map, both):
    """A rule that folds or leaves the model teaches a layer twice, or crashes deep in a run."""
    student_depth, teacher_depth = both
    if student_depth == 1 and str(layer_map) in ("skip", "last(final=False)"):
        with pytest.raises(ValueError, match="no intermediate layer"):
            layer_map.resolve(student_depth, teacher_depth)
        return
    pairs = layer_map.resolve(student_depth, teacher_depth)
    for column, depth in zip(zip(*pairs, strict=True), both, strict=True):
        assert list(column) == sorted(set(column))
        assert column[0] >= 0
        assert column[-1] <= depth


@given(ordered_depths)
def test_uniform_maps_ends_to_ends(both):
    """The embeddings and the last layers are the anchors of the uniform map at any depths, dividing or not."""
    student_depth, teacher_depth = both
    pairs = LayerMap.uniform().resolve(student_depth, teacher_depth)
    assert pairs[0] == (0, 0)
    assert pairs[-1] == (student_depth, teacher_depth)
    assert len(pairs) == student_depth + 1
    assert all(abs(teacher - student * teacher_depth / student_depth) <= 0.5 for student, teacher in pairs)


@given(depths, st.integers(1, 100))
def test_dynabert_fits_the_depth_it_asks_for(teacher_depth, hundredths):
    """Whatever the multiplier, the map increases and ends at the last layer, or names the depth that would fit."""
    multiplier = hundredths / 100
    student_depth = round(hundredths * teacher_depth / 100)
    layer_map = LayerMap.dynabert(multiplier)
    if student_depth == 0:
        with pytest.raises(ValueError, match=f"keeps 0 of {teacher_depth} teacher layers"):
            layer_map.resolve(1, teacher_depth)
        return
    pairs = layer_map.resolve(student_depth, teacher_depth)
    kept = [teacher for _, teacher in pairs]
    assert [student for student, _ in pairs] == list(range(student_depth + 1))
    assert kept == sorted(set(kept))
    assert kept[:-1] == [100 * index // hundredths for index in range(student_depth)]
    assert kept[-1] == teacher_depth


@given(st.data(), depths, depths)
def test_negative_indices_mean_what_they_mean_for_hidden_states(data, student_depth, teacher_depth):
    """`hidden_states[i - L - 1]` and `hidden_states[i]` are one tensor, so they must be one layer of the map."""
    student = data.draw(st.integers(0, student_depth))
    teacher = data.draw(st.integers(0, teacher_depth))
    counted_back = LayerMap.explicit([(student - student_depth - 1, teacher - teacher_depth - 1)])
    assert counted_back.resolve(student_depth, teacher_depth) == ((student, teacher),)


@given(any_rule)
def test_text_reads_back_as_the_same_rule(layer_map):
    """Configurations and model cards keep a map as text; reading it must give the very same map."""
    again = LayerMap.parse(str(layer_map))
    assert again == layer_map
    assert hash(again) == hash(layer_map)
    assert eval(repr(layer_map), {"LayerMap": LayerMap}) == layer_map
    assert pickle.loads(pickle.dumps(layer_map)) == copy.deepcopy(layer_map) == layer_map


@given(any_rule, depths, depths)
def test_without_embeddings_drops_layer_zero_and_nothing_else(layer_map, student_depth, teacher_depth):
    """Attention has no layer 0, and a map that lost other pairs on the way would silently teach less."""
    bare = layer_map.without_embeddings()
    assert bare.without_embeddings() == bare
    assert LayerMap.parse(str(bare)) == bare
    try:
        pairs = layer_map.resolve(student_depth, teacher_depth)
    except ValueError:
        return
    expected = tuple(pair for pair in pairs if 0 not in pair)
    if expected:
        assert bare.resolve(student_depth, teacher_depth) == expected
    else:
        with pytest.raises(ValueError, match="no pair remains"):
            bare.resolve(student_depth, teacher_depth)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("uniform", LayerMap.uniform()),
        (" every( 2 ) ", LayerMap.every(2)),
        ("every(step=2)", LayerMap.every(2)),
        ("last(final=False)", LayerMap.last(final=False)),
        ("dynabert(0.5, embeddings=False)", LayerMap.dynabert(0.5).without_embeddings()),
        ([[1, 3], [2, -1]], LayerMap.explicit([(1, 3), (2, -1)])),
        (LayerMap.skip(), LayerMap.skip()),
    ],
)
def test_parse_reads_what_a_configuration_holds(spec, expected):
    """Strings and lists of lists are all that YAML can hold; a map passes through."""
    assert LayerMap.parse(spec) == expected


def test_rules_differ_by_their_arguments():
    """Equality decides whether two losses share a capture plan: different rules must not be taken for one."""
    rules = [LayerMap.uniform(), LayerMap.uniform(False), LayerMap.last(), LayerMap.last(False), LayerMap.first()]
    rules += [LayerMap.every(2), LayerMap.every(3), LayerMap.explicit([(1, 2)]), LayerMap.explicit([(1, 3)])]
    assert len(set(rules)) == len(rules)


@pytest.mark.parametrize(
    ("layer_map", "depths", "reason"),
    [
        (LayerMap.uniform(), (12, 6), "not swapped"),
        (LayerMap.first(), (12, 6), "not swapped"),
        (LayerMap.every(3), (6, 12), "teacher layer 18.*every\\(2\\)"),
        (LayerMap.dynabert(0.5), (4, 12), "keeps 6 of 12.*student of 6"),
        (LayerMap.explicit([(1, 13)]), (6, 12), "teacher layer 13.*0 \\(embeddings\\) to 12"),
        (LayerMap.explicit([(-8, 1)]), (6, 12), "student layer -8"),
        (LayerMap.explicit([(6, 1), (-1, 1)]), (6, 12), "twice"),
        (LayerMap.skip(), (1, 12), "no intermediate layer.*deeper student"),
        (LayerMap.explicit([(0, 0)]).without_embeddings(), (6, 12), "no pair remains"),
        (LayerMap.last(), (0, 12), "without layers"),
        (LayerMap.last(), (6, -1), "without layers"),
    ],
    ids=str,
)
def test_a_map_that_does_not_fit_names_the_map_and_both_depths(layer_map, depths, reason):
    """The reader of the message sees neither model: it must say which rule, which depths, why and what to do."""
    opening = re.escape(
        f"'{layer_map}' cannot pair a student of depth {depths[0]} with a teacher of depth {depths[1]}: "
    )
    with pytest.raises(ValueError, match=f"{opening}.*{reason}"):
        layer_map.resolve(*depths)


@pytest.mark.parametrize("depth", [True, 6.0, "6", None])
def test_depths_are_integers(depth):
    """A float depth would give float layers that no hidden state answers to."""
    with pytest.raises(TypeError, match="teacher's depth"):
        LayerMap.uniform().resolve(1, depth)


def test_an_unknown_rule_lists_the_accepted_ones_nearest_first():
    """A slip of the pen should cost one look at the message."""
    with pytest.raises(ValueError, match=r"no layer map 'unifrom'. Write one of 'uniform', .*'every\(2\)'"):
        LayerMap.parse("unifrom")
    with pytest.raises(ValueError, match="Write one of 'last'"):
        LayerMap("lsat")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("every", "missing a required argument: 'step'"),
        ("every(2, 3)", "too many positional"),
        ("first(2)", "too many positional"),
        ("uniform(embedding=False)", "unexpected keyword"),
        ("every(x)", "only plain values"),
        ("first(", "never closed"),
        ("every(2)(3)", "cannot be read"),
        ("first(**{})", "cannot be read"),
        ("first() or last()", "cannot be read"),
        ("every(0)", "at least 1"),
        ("dynabert(0)", "share of"),
        ("dynabert(1.5)", "share of"),
        ("explicit(3)", "list of pairs"),
        ([], "at least one pair"),
        ([1, 2], "1 is no such pair"),
        ([(1, 2, 3)], "no such pair"),
        ([(1, 2.0)], "no such pair"),
        ([(True, 2)], "no such pair"),
        (["12"], "no such pair"),
    ],
)
def test_a_malformed_map_is_refused_with_an_example(spec, reason):
    """Errors belong to the moment the map is written, not to the first training step."""
    with pytest.raises(ValueError, match=f"({reason}).*[Ww]rite"):
        LayerMap.parse(spec)


@pytest.mark.parametrize(
    "spec", [3, None, {"every": 2}, "every(2.5)", "every(True)", "dynabert(True)", "dynabert('a')"]
)
def test_the_wrong_type_is_refused_with_an_example(spec):
    """A number alone, a mapping or a flag has no meaning as a map; guessing one would hide the mistake."""
    with pytest.raises(TypeError, match="Write"):
        LayerMap.parse(spec)


def test_layer_map_and_schedules_need_no_torch():
    """`hfdistill methods` and configuration checks must answer at once, and torch takes seconds to load."""
    program = "import sys, hfdistill.layer_map, hfdistill.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
