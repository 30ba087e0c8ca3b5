from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.episodes import EpisodeList, TrainingEpisodes
from datasets.feature_bank import NORMAL, QUERY, VIEW, BankCrops, BankEpisodes, FeatureBank
from datasets.views import TrainingCrops, ViewSettings
from tests.helpers import read_index
from utils.errors import ConfigError

SETTINGS = ViewSettings(image_size=16, crop_size=24, resize_ratio=0.01, views=2, normal_views=1)


@pytest.fixture(scope="module")
def index(surfaces):
    return read_index(surfaces, "Plate", "Disk")


def bank_crops(index, count=3, settings=SETTINGS, seed=54, alpha=0.0):
    options = {"crop_ratio": (0.7, 1.2), "normal_probability": alpha, "degrees": (-10, 10)}
    crops = TrainingCrops(settings, **options)
    return BankCrops(TrainingEpisodes(EpisodeList(index, 2, seed), crops), count)


def numbered(folder, crops):
    """Episodes over a bank whose features and masks are the number of their row."""
    bank = FeatureBank(folder / "bank", len(crops) * crops.per_sample, 2, (1, 1), 16)
    bank.create()
    rows = torch.arange(bank.rows)[:, None, None]
    bank.write(0, rows[..., None].expand(-1, 2, 1, 1).float(), rows.expand(-1, 16, 16).byte())
    return BankEpisodes(crops, bank)


def origin(crops, features):
    """(position of the sample, role, number) of features that are the number of their row."""
    place, within = divmod(int(features.flatten()[0]), crops.per_sample)
    return crops.positions[place], *divmod(within, crops.count)


def test_crops_depend_on_seed_sample_role_and_number_alone(index):
    few, many, other = bank_crops(index, 2), bank_crops(index, 3), bank_crops(index, 3, seed=55)
    for place in (0, 5):
        first, second = few[place], many[place]
        assert first["place"] == place and first["images"].shape == (6, 3, 16, 16)
        for part in ("images", "masks"):
            kept = second[part].unflatten(0, (3, 3))[:, :2].flatten(0, 1)
            assert torch.equal(first[part], kept)
    drawn = torch.cat([many[0]["images"], many[1]["images"], other[0]["images"]])
    assert len(drawn.flatten(1).unique(dim=0)) == len(drawn), "otherwise another crop"


def test_each_role_looks_where_it_should(index):
    def marked(**options):
        crops = bank_crops(index, 3, **options)
        masks = torch.stack([crops[place]["masks"] for place in range(0, len(crops), 4)])
        return masks.unflatten(1, (-1, 3)).flatten(3).any(-1).float().mean((0, 2)).tolist()

    assert marked()[QUERY] == marked()[VIEW] == 1 and marked()[NORMAL] < 0.7
    assert marked(alpha=1.0)[QUERY] < 0.7, "the probability of normal queries counts"
    assert len(marked(settings=replace(SETTINGS, normal_views=0))) == 2


def test_a_bank_keeps_what_is_written(tmp_path):
    bank = FeatureBank(tmp_path / "bank", 5, 3, (2, 4), 16)
    bank.create()
    sizes = [path.stat().st_size for path in bank.folder.iterdir()]
    assert sum(sizes) == bank.nbytes == 5 * (2 * 3 * 2 * 4 + 16 * 16)
    features, masks = torch.randn(2, 3, 2, 4), torch.randint(0, 2, (2, 16, 16), dtype=torch.uint8)
    bank.write(1, features, masks)
    bank.write(3, -features, 1 - masks)
    read, marks = bank.read([4, 1, 1])
    expected = torch.stack([-features[1], features[0], features[0]])
    assert torch.equal(read, expected.to(torch.bfloat16))
    assert torch.equal(marks, torch.stack([1 - masks[1], masks[0], masks[0]]))
    bank.create()
    assert not bank.read([1])[0].any(), "what an earlier run has left is replaced"
    bank.remove()
    assert not list(tmp_path.iterdir())


def test_a_bank_larger_than_the_disk_is_refused_before_anything_is_written(tmp_path):
    bank = FeatureBank(tmp_path / "bank", 10**9, 4608, (37, 37), 518)
    need = r"1,000,000,000 crops need 12,885,028,000,000,000 bytes in .*bank, and [\d,]+ are free"
    remedy = r"there.*; lower TRAIN\.feature_bank \(0: no bank\).*OUTPUT_DIR"
    with pytest.raises(ConfigError, match=rf"TRAIN\.feature_bank: {need} {remedy}"):
        bank.create()
    assert not list(bank.folder.iterdir())


@pytest.mark.parametrize("count", [1, 3])
def test_episodes_are_those_without_the_bank_and_crops_are_drawn_anew(index, tmp_path, count):
    crops = bank_crops(index, count)
    data, plain, chosen = numbered(tmp_path, crops), EpisodeList(index, shot=2, seed=54), []
    assert len(data) == len(plain)
    for number in range(6 * len(data)):
        epoch, position = divmod(number, len(data))
        episode, item = plain.episode(position, epoch), data[number]
        assert item["class"] == episode.query.class_name and item["number"] == number
        sample, role, chosen_crop = origin(crops, item["query_features"])
        chosen.append(chosen_crop)
        assert index.samples[sample] == episode.query and role == QUERY
        assert item["query_mask"][0, 0] == item["query_features"][0, 0, 0]
        supports = [origin(crops, features) for features in item["support_features"]]
        wanted = [s for s in episode.candidates[:2] for _ in range(3)]
        assert [index.samples[sample] for sample, _, _ in supports] == wanted
        assert [role for _, role, _ in supports] == [VIEW, VIEW, NORMAL] * 2
        assert len({k for _, _, k in supports[:2]}) == min(2, count), "none twice before all"
    assert min(np.bincount(chosen, minlength=count)) > len(chosen) / 5


def test_images_of_an_episode_are_the_crops_that_the_bank_was_made_of(index, tmp_path):
    crops = bank_crops(index)
    data = numbered(tmp_path, crops)
    item, images = data[21], data.images(21)
    rows = [int(f.flatten()[0]) for f in (item["query_features"], *item["support_features"])]
    shown = torch.cat([images["query"][None], images["supports"]])
    marks = torch.cat([images["query_mask"][None], images["support_masks"]])
    assert images["class"] == item["class"] and len(shown) == 7
    for row, image, mask in zip(rows, shown, marks, strict=True):
        sample, number = crops[row // crops.per_sample], row % crops.per_sample
        assert torch.equal(image, sample["images"][number])
        assert torch.equal(mask, sample["masks"][number])
