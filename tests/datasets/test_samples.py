from __future__ import annotations

import numpy as np
import pytest

from datasets.rle import rle_encode
from datasets.samples import Sample, SampleIndex, join_categories
from utils.errors import DataError


def sample(image="Ring/train/a.png", object="Ring", category=0, name="scratch", marked=3):
    mask = np.zeros((4, 6), np.uint8)
    mask.flat[:marked] = 1
    return Sample(image, object, category, name, rle_encode(mask))


def test_a_sample_and_an_index_tell_classes_objects_and_images(tmp_path):
    one = sample(marked=3)
    assert one.size == (4, 6) and one.area_share == pytest.approx(3 / 24)
    assert one.class_key == ("Ring", 0) and one.class_name == "Ring/scratch"
    assert one.decode_mask().tolist() == [[1, 1, 1, 0, 0, 0]] + [[0] * 6] * 3
    samples = [one, sample("Wood/a.png", "Wood"), sample(category=1), sample("Ring/b.png")]
    index = SampleIndex(tmp_path, samples)
    assert len(index) == 4 and index.objects() == ["Ring", "Wood"]
    assert index.classes() == {("Ring", 0): [0, 3], ("Wood", 0): [1], ("Ring", 1): [2]}
    (tmp_path / "Wood").mkdir()
    index.image_path(samples[1]).touch()
    assert index.missing_images() == [tmp_path / "Ring/train/a.png", tmp_path / "Ring/b.png"]


def test_a_name_is_one_category_whatever_its_number_in_a_file():
    known = {}
    assert join_categories(known, "a", {4: "pit", 0: "scratch"}, [0, 4]) == {0: 0, 4: 4}
    assert join_categories(known, "b", {4: "scratch", 0: "pit"}, [0, 4]) == {0: 4, 4: 0}
    assert join_categories(known, "c", {1: "pit", 2: "pit"}, [1, 2]) == {1: 4, 2: 4}
    assert join_categories(known, "d", {4: "all", 0: "scratch"}, [0]) == {0: 0}, "not used"
    assert join_categories(known, "e", {0: "hole", 4: "scratch", 7: "pit"}, [0, 4]) == {0: 8, 4: 0}


@pytest.mark.parametrize("name", ["hole", "PIT "])
def test_a_clash_of_category_names_is_refused_with_both_files(name):
    with pytest.raises(DataError, match=f"b: category 4 is '{name}', but in a it is 'pit'"):
        join_categories({"pit": (4, "a")}, "b", {4: name}, [4])
