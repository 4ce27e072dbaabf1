"""The classes of a model and of data are brought together by what they are called."""

from dataclasses import replace

import numpy as np
import pytest
from timm.data.imagenet_info import ImageNetInfo

from comvex.data.sources import open_data
from comvex.inference.classes import match_classes

DIGITS = open_data("digits")
INFO = ImageNetInfo()
IDS, NAMES = INFO.label_names(), INFO.label_descriptions()


def data(*classes: str, ids: tuple[str, ...] = ()):
    return replace(DIGITS, classes=classes, class_ids=ids)


@pytest.mark.parametrize(
    ("classes", "places"),
    [(("a", "b", "c"), [0, 1, 2]), (("c", "a", "b"), [2, 0, 1]), (("c",), [2]), (("b", "a"), [1, 0])],
)
def test_classes_are_found_by_name_in_any_order_and_number(classes, places):
    assert match_classes(("a", "b", "c"), data(*classes)).tolist() == places


def test_a_class_that_the_model_does_not_know_is_named():
    with pytest.raises(ValueError, match="does not know 'd'; it knows 'a', 'b'"):
        match_classes(("a", "b"), data("a", "d"))


def test_a_name_that_the_model_has_twice_is_refused_unless_all_classes_are_the_same():
    with pytest.raises(ValueError, match="2 classes called 'crane'"):
        match_classes(("crane", "crane", "a"), data("a", "crane"))
    assert match_classes(("crane", "crane", "a"), data("crane", "crane", "a")).tolist() == [0, 1, 2]


def test_imagenets_folders_are_matched_to_the_published_models_by_wordnet_id():
    whole = data(*NAMES, ids=tuple(IDS))
    assert match_classes(NAMES, whole).tolist() == list(range(1000))
    cranes = [index for index, name in enumerate(NAMES) if name == "crane"]
    some = [3, cranes[1], 700, cranes[0]]
    shown = tuple(f"{NAMES[index]} ({IDS[index]})" for index in some)
    assert len(cranes) == 2
    assert match_classes(NAMES, data(*shown, ids=tuple(IDS[index] for index in some))).tolist() == some


def test_models_that_call_imagenets_classes_by_their_ids_are_matched_too():
    order = np.random.default_rng(0).permutation(1000)
    labels = tuple(IDS[index] for index in order)
    some = (5, 999)
    found = match_classes(labels, data(*(NAMES[i] for i in some), ids=tuple(IDS[i] for i in some)))
    assert order[found].tolist() == list(some)


def test_a_model_of_some_of_imagenets_classes_knows_them_by_their_names():
    labels = (NAMES[7], NAMES[2])
    assert match_classes(labels, data(NAMES[2], NAMES[7], ids=(IDS[2], IDS[7]))).tolist() == [1, 0]
    with pytest.raises(ValueError, match="does not know 'tench"):
        match_classes(labels, data(NAMES[2], NAMES[0], ids=(IDS[2], IDS[0])))
