from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.backbone import Backbone, build_backbone
from models.feature_cache import FeatureCache
from tests.helpers import largest_file
from tests.models.tiny import SIDE, tiny_vit
from utils.errors import OutputError


def convolutional():
    options = {"layers": [1, 2, 3], "image_size": SIDE, "stride": 14}
    return build_backbone("efficientnet_lite0", **options)


def transformer():
    torch.manual_seed(0)
    return Backbone(tiny_vit(), [1, 3], 14)


EACH = pytest.mark.parametrize("make", [convolutional, transformer])


def with_cache(make, folder):
    """A backbone on a cache, and the batch sizes that its first convolution sees."""
    backbone, sizes = make(), []
    backbone.cache = FeatureCache(folder, backbone.channels, backbone.identity)
    first = next(m for m in backbone.model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return backbone, sizes


def pixels(count):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIDE, SIDE, generator=draw)


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@EACH
def test_features_are_those_without_a_cache_and_a_second_pass_encodes_nothing(make, tmp_path):
    """Bit for bit, also of images of which some are kept, in another order, and of one alone."""
    images, (backbone, sizes) = pixels(5), with_cache(make, tmp_path)
    expected = make()(images)
    assert equal(backbone(images[:3]), [layer[:3] for layer in expected]) and sizes == [3]
    assert equal(backbone(images[:3]), [layer[:3] for layer in expected]) and sizes == [3]
    assert len(files_of(tmp_path)) == 3
    some = [4, 2, 3, 0, 4]
    assert equal(backbone(images[some]), [layer[some] for layer in expected])
    assert len(files_of(tmp_path)) == 5 and len(sizes) == 2
    again, more = with_cache(make, tmp_path)
    for number in range(5):
        alone = again(images[number : number + 1])
        assert equal(alone, [layer[number : number + 1] for layer in expected])
    assert not more, "another backbone of these weights finds all that the first one left"


@EACH
def test_an_image_alone_has_the_features_that_it_has_in_company(make, tmp_path):
    images, (backbone, sizes) = pixels(2), with_cache(make, tmp_path)
    expected = make()(images)
    for number in range(2):
        alone = backbone(images[number : number + 1])
        assert equal(alone, [layer[number : number + 1] for layer in expected])
    assert len(sizes) == 2


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "header cut", "zeros", "text", "objects", "gone"]
)
def test_a_broken_file_is_made_anew(tmp_path, damage):
    images, (backbone, sizes) = pixels(3), with_cache(transformer, tmp_path)
    expected = backbone(images)
    file = files_of(tmp_path)[1]
    whole = file.read_bytes()
    if damage == "objects":
        np.save(file, np.array([None]))
    elif damage == "gone":
        file.unlink()
    else:
        broken = {"empty": b"", "cut": whole[:-9], "header cut": whole[:50],
                  "zeros": bytes(len(whole)), "text": b"PK\x03\x04 no array"}  # fmt: skip
        file.write_bytes(broken[damage])
    assert equal(backbone(images), expected) and len(sizes) == 2
    assert file.read_bytes() == whole and len(files_of(tmp_path)) == 3
    assert equal(backbone(images), expected) and len(sizes) == 2


@EACH
def test_each_precision_has_its_own_entries(make, tmp_path):
    images, (backbone, sizes) = pixels(2), with_cache(make, tmp_path)
    single = backbone(images)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [layer.bfloat16() for layer in make()(images)]
        for _ in range(2):
            assert equal(backbone(images), expected)
    assert len(sizes) == 2 and len(files_of(tmp_path)) == 4
    assert equal(backbone(images), single) and len(sizes) == 2
    assert {layer.dtype for layer in single} == {torch.float32}


def test_images_of_one_content_and_two_shapes_are_told_apart(tmp_path):
    backbone, _ = with_cache(convolutional, tmp_path)
    wide = torch.zeros(2, 3, SIDE, 2 * SIDE)
    assert backbone(wide)[0].shape[-2:] == (4, 8)
    assert backbone(wide.reshape(2, 3, 2 * SIDE, SIDE))[0].shape[-2:] == (8, 4)


@pytest.mark.parametrize("room", [100, 1000])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_none(tmp_path, room):
    backbone, _ = with_cache(transformer, tmp_path)
    with (
        largest_file(room),
        pytest.raises(OutputError, match=r"\.npy cannot be written \(File too"),
    ):
        backbone(pixels(2))
    assert not files_of(tmp_path)
