from __future__ import annotations

from itertools import product

import cv2
import numpy as np
import pytest
from scipy import stats

from datasets import large_images
from datasets.large_images import ImageStrips
from datasets.refinement import (
    FAR,
    LEVELS,
    REACH,
    SHRINKAGE,
    SURE,
    addition,
    as_seen,
    cut_wide,
    enlarged,
    follow_neighbours,
    likelihood_ratio,
    log_odds,
    offset_of_masks,
    pixel_features,
    refine,
    steepest,
)
from tests.datasets.bad_files import saved

TOKEN = 14


def scratched(seed=0, light=1.0, size=(180, 240)):
    """A grained surface with a dark scratch 3 pixels wide, the mask of it, and probabilities as
    tokens of 14 pixels give them: high in a band many times as wide."""
    draw = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(draw.normal(150, 60, (*size, 3)).astype(np.float32), (0, 0), 1)
    mask = cv2.line(np.zeros(size, np.uint8), (40, 40), (190, 120), 1, 3)
    image = ((grain - 60 * mask[..., None]) * light).clip(0, 255).astype(np.uint8)
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7 * TOKEN)
    logits = 4 * share / share.max() - 2
    return image, mask, 1 / (1 + np.exp(-logits))


def refined(image, score, threshold=0.5, window=0, image_size=240, stride=TOKEN, probe=None):
    """Label and score after the refinement of copies, by default with tokens of 14 pixels."""
    label, score = (score > threshold).astype(np.uint8), score.copy()
    options = {"window": window, "image_size": image_size, "stride": stride}
    seen = as_seen(score, ImageStrips(image), threshold=threshold, **options)
    if seen is not None:
        refine(label, score, seen, threshold, probe)
    return label, score


def bright(mask):
    """A dark grey image that is lighter in the mask."""
    return np.where(mask, 150, 120).astype(np.uint8)[..., None].repeat(3, axis=2)


def iou(label, mask):
    return (label & mask).sum() / (label | mask).sum()


@pytest.mark.parametrize("light", [1.0, 0.5])
def test_a_mask_that_is_as_wide_as_tokens_follows_the_scratch_in_any_light(light):
    image, mask, score = scratched(light=light)
    label, after = refined(image, score)
    assert iou(label, mask) > 1.7 * iou(score > 0.5, mask == 1) > 0.3
    assert np.array_equal(label, after > 0.5)


def test_what_no_pixel_says_is_left_and_so_are_far_pixels_but_for_the_border():
    image, _, score = scratched()
    low = score * 0.4
    assert np.array_equal(refined(image, low)[1], low), "nothing is over the threshold"
    sure = np.full_like(score, 1 - 1e-7)
    assert np.array_equal(refined(image, sure, 1 - 5e-7)[1], sure), "log-odds are as good as equal"
    small = refined(image, score, image_size=2400)  # tokens of 1.4 pixels
    assert np.array_equal(small[1], score)
    after = refined(image, score)[1]
    moved = log_odds(after) - log_odds(score)
    far = cv2.distanceTransform((score <= 0.5).astype(np.uint8), cv2.DIST_L2, 5) > 2 * TOKEN + 1
    assert far.any() and np.ptp(moved[far]) < 1e-4 and np.ptp(moved[~far]) > 0.5
    assert 0 < abs(moved[far][0]) <= 1 + 1e-4


@pytest.mark.parametrize("side, is_left", [(5, False), (9, True)])
def test_a_region_under_a_quarter_of_a_token_is_no_defect(side, is_left):
    logits = np.full((120, 120), -3, np.float32)
    logits[20:60, 20:60] = 4
    logits[90 : 90 + side, 90 : 90 + side] = 4
    label, score = refined(bright(logits > 0), 1 / (1 + np.exp(-logits)), image_size=120)
    assert label[20:60, 20:60].all() and label[90:, 90:].any() == is_left
    assert np.array_equal(label, score > 0.5)


def test_regions_that_are_nowhere_sure_are_no_defects_beside_surer_ones():
    """Sure is 0.75 of log-odds, or half of the highest where that is less."""
    grey, seen = np.full((120, 120, 3), 128, np.uint8), set()
    for high, low in product((0.3, 0.6, 1.0, 4.0), np.arange(-0.4, 1.2, 0.1)):
        logits = np.full((120, 120), -4, np.float32)
        logits[20:60, 20:60], logits[80:100, 80:100] = high, low
        added = addition(logits, grey, 4)
        level = added[40, 40] if high > low else added[90, 90]
        highest, other = max(high, low) + level, min(high, low) + level
        bar, place = min(0.75, highest / 2), (90, 90) if high > low else (40, 40)
        if abs(other - bar) > 1e-3 and other > 0:
            is_left = bool((logits + added)[place] > 0)
            assert is_left == (other > bar)
            seen.add((is_left, bar < 0.75))
    assert len(seen) == 4, "both bars, over and under each"


@pytest.mark.parametrize("radius", [60, 90, 120])
def test_without_colour_the_border_lies_where_the_score_falls_fastest(radius):
    """A cone of log-odds with a cliff: its mask ends at the cliff, whichever level that is."""
    y, x = np.mgrid[:480, :480] - 240
    distance = np.hypot(y, x)
    logits = (90 - distance) / 60 + 0.3 * np.tanh((radius - distance) / 6)
    grey = np.full((480, 480, 3), 128, np.uint8)
    score = (1 / (1 + np.exp(-logits))).astype(np.float32)
    label = refined(grey, score, image_size=480)[0]
    before, after = (np.sqrt(found.sum() / np.pi) for found in (score > 0.5, label))
    assert abs(after - radius) < TOKEN / 4 and (radius == 90 or abs(before - radius) > TOKEN / 2)


def test_the_steepest_level_is_that_of_a_loop_over_all_levels():
    logits = cv2.GaussianBlur(np.random.default_rng(3).normal(0, 40, (90, 70)), (0, 0), 5)
    logits = (logits + 2 * np.tanh(4 * (logits - 0.8))).astype(np.float32)
    slope = np.hypot(cv2.Sobel(logits, cv2.CV_32F, 1, 0), cv2.Sobel(logits, cv2.CV_32F, 0, 1))
    found = np.array([slope[abs(logits - level) <= 0.125].mean() for level in LEVELS])
    expected = (LEVELS * found**8).sum() / (found**8).sum()
    assert steepest(logits) == pytest.approx(expected, abs=1e-3) and expected > 0.3
    assert steepest(np.full((9, 9), -5, np.float32)) == 0


def test_the_threshold_is_where_the_refinement_begins():
    """Scores and a threshold that are moved by the same log-odds give the same mask."""
    image, _, score = scratched()
    moved = (1 / (1 + np.exp(-log_odds(score) + 1))).astype(np.float32)
    low = float(1 / (1 + np.exp(1)))
    label, after = refined(image, moved, threshold=low)
    assert np.array_equal(label, after > low)
    assert (label != refined(image, score)[0]).mean() < 1e-3


def stained(scale=1):
    """A grained surface with a stain as wide as many tokens and a narrow scratch, the mask of both,
    and log-odds that lie half a token beside them."""
    size = (140 * scale, 200 * scale)
    grain = np.random.default_rng(8).normal(0, 12, (140, 200, 3)).astype(np.float32)
    grain = cv2.resize(grain, size[::-1], interpolation=cv2.INTER_CUBIC)
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, (70 * scale, 70 * scale), (45 * scale, 30 * scale), 20, 0, 360, 1, -1)
    cv2.line(mask, (160 * scale, 20 * scale), (160 * scale, 120 * scale), 1, 4 * scale)
    image = (150 + grain + mask[..., None] * np.float32([-40, 10, 30])).clip(0, 255)
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 8.0 * scale)
    share[:, 130 * scale :] *= 0.8 / share[:, 130 * scale :].max()
    logits = 4 * np.roll(share, 7 * scale, 1) - 2
    return image.astype(np.uint8), mask, logits


def test_the_border_of_a_wide_region_lies_where_colours_change():
    image, mask, logits = stained()
    cut = cut_wide(logits, image, TOKEN)
    stain = np.s_[:, :130]
    before, after = (iou(found[stain] > 0, mask[stain] == 1) for found in (logits, cut))
    assert before < 0.85 and after > 0.95
    changed = (cut > 0) != (logits > 0)
    assert np.array_equal(cut[~changed], logits[~changed]) and abs(cut[changed]).max() <= 0.5
    cv2.setRNGSeed(5)
    assert np.array_equal(cut_wide(logits, image, TOKEN), cut), "whatever was drawn before"


def test_a_border_lies_as_far_from_the_colours_as_those_of_the_supports():
    """Masks that are drawn more widely or more narrowly are drawn so in an answer, too."""
    image, mask, logits = stained()
    token = TOKEN / 2
    exact = cut_wide(logits, image, token) > 0
    for pixels in (-4, 0, 4):
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(pixels) + 1,) * 2)
        drawn = cv2.dilate(mask, kernel) if pixels > 0 else cv2.erode(mask, kernel)
        offset = offset_of_masks([(image, drawn), (image, mask * 0)], token)
        assert offset * token == pytest.approx(pixels, abs=token / 4)  # one pixel of the copy
        moved = cut_wide(logits, image, token, offset) > 0
        stain = np.s_[:, :130]
        assert iou(moved[stain], drawn[stain] == 1) > 0.93
        assert pixels == 0 or iou(exact[stain], drawn[stain] == 1) < 0.9
    assert offset_of_masks([], TOKEN) == offset_of_masks([(image * 0, mask)], TOKEN) == 0


def test_masks_of_narrower_regions_stay_as_wide_as_they_are_where_supports_are_marked_widely():
    image, _, logits = stained()
    wide = logits + 1  # the border moves inwards if it may
    inwards, kept = (cut_wide(wide, image, TOKEN, offset) > 0 for offset in (0.1, 0.2))
    inner = cv2.erode((wide > 0).astype(np.uint8), np.ones((5, 5))) > 0  # a pixel of the copy
    assert (inner & ~inwards).sum() > 100 and kept[inner].all()


def test_only_unsure_pixels_near_wide_regions_change_sides():
    image, _, logits = stained()
    logits[20:60, 10:30] = -SURE - 0.2  # into the stain: surely normal, whatever it looks like
    changed = (cut_wide(logits, image, TOKEN) > 0) != (logits > 0)
    step = TOKEN / 4  # a pixel of the small copy
    wide = logits > 0
    wide[:, 140:] = False
    far = cv2.distanceTransform((~wide).astype(np.uint8), cv2.DIST_L2, 5) > REACH * TOKEN + 2 * step
    within = cv2.erode((abs(logits) > SURE).astype(np.uint8), np.ones((9, 9))) > 0
    assert changed.any() and not changed[far].any() and not changed[within].any()
    assert far[:, 160:].all() and (logits[:, 160:] > 0).any(), "the scratch is narrow"


def test_a_cut_is_the_same_in_an_image_twice_as_large():
    one, two = (cut_wide(logits, image, scale * TOKEN) > 0
                for scale in (1, 2) for image, _, logits in (stained(scale),))  # fmt: skip
    assert iou(one, two[::2, ::2]) > 0.97


def test_nothing_is_cut_where_colours_do_not_change_or_all_is_defect():
    image, _, logits = stained()
    assert np.array_equal(cut_wide(logits, np.full_like(image, 90), TOKEN), logits)
    assert np.array_equal(cut_wide(abs(logits) + 1, image, TOKEN), abs(logits) + 1)
    assert np.array_equal(cut_wide(-abs(logits) - 1, image, TOKEN), -abs(logits) - 1)


def test_pixels_are_told_apart_by_the_log_odds_of_two_normal_distributions():
    """By SciPy, with each covariance halfway to the mean of both, and the shrinkage."""
    draw = np.random.default_rng(1)
    mixes = [draw.normal(size=(3, 3)), 2 * draw.normal(size=(3, 3))]
    kinds = [draw.normal(size=(40, 100, 3)) @ mix + draw.normal(size=3) for mix in mixes]
    own = [np.cov(kind.reshape(-1, 3), rowvar=False) for kind in kinds]
    others = draw.normal(0, 3, (70, 100, 3))
    looks, expected = np.concatenate([*kinds, others]).astype(np.float32), 0
    for sign, kind, covariance in zip((1, -1), kinds, own, strict=True):
        covariance = (covariance + sum(own) / 2) / 2 + SHRINKAGE * np.diag(sum(own).diagonal() / 2)
        density = stats.multivariate_normal(kind.mean((0, 1)), covariance)
        expected += sign * density.logpdf(looks)
    row = np.arange(150)[:, None].repeat(100, axis=1)
    odds = likelihood_ratio(looks, row < 40, (row >= 40) & (row < 80))
    assert odds.dtype == np.float32 and np.ptp(expected) > 20
    np.testing.assert_allclose(odds, expected, rtol=0.1, atol=0.3)


def test_a_large_image_is_refined_by_a_smaller_copy_whole_or_in_strips(tmp_path, monkeypatch):
    image, mask, score = scratched(size=(300, 520))
    large = [cv2.resize(a, (2080, 1200), interpolation=cv2.INTER_CUBIC) for a in (image, score)]
    label = refined(*large, image_size=520)[0]
    small = refined(image, score, image_size=520)[0]
    truth = cv2.resize(mask, (2080, 1200), interpolation=cv2.INTER_NEAREST)
    assert iou(label, truth) > 1.7 * iou(large[1] > 0.5, truth == 1) > 0.3
    assert iou(label, cv2.resize(small, (2080, 1200), interpolation=cv2.INTER_NEAREST)) > 0.7
    file = saved(tmp_path / "a.png", large[0])
    monkeypatch.setattr(large_images, "AT_ONCE", 1000)
    assert ImageStrips(file).pixels is None
    assert np.array_equal(refined(file, large[1], image_size=520)[0], label)


def test_features_of_pixels_turn_with_the_image_and_are_in_tokens():
    """Those of a turned or mirrored image are the turned features; of an image twice as large, with
    tokens twice as large, about the same, but for edges, which come last."""
    image, _, score = scratched(seed=4)
    image, logits = cv2.GaussianBlur(image, (0, 0), 3), log_odds(score).astype(np.float32)

    def maps(image, logits, token=TOKEN):
        added = addition(logits, image, token)
        pixels, features = pixel_features(logits, added, image, token)
        assert np.array_equal(pixels, np.flatnonzero(logits > -FAR)) and len(pixels) > 0
        spread = np.full((*logits.shape, features.shape[1]), np.nan, np.float32)
        spread.reshape(-1, features.shape[1])[pixels] = features
        return spread

    straight = maps(image, logits)
    for turn in (np.flipud, np.fliplr, lambda a: a.swapaxes(0, 1)):
        other = maps(*(np.ascontiguousarray(turn(a)) for a in (image, logits)))
        np.testing.assert_allclose(other, turn(straight), atol=0.02)
    double = maps(*(cv2.resize(a, None, fx=2, fy=2) for a in (image, logits)), 2 * TOKEN)[::2, ::2]
    known = np.isfinite(straight[..., 0]) & np.isfinite(double[..., 0])
    for one, two in zip(straight[known].T[:-2], double[known].T[:-2], strict=True):
        alike = np.ptp(one) < 1e-3 or np.corrcoef(one, two)[0, 1] > 0.9
        assert alike and abs(one.mean() - two.mean()) < 0.6 * one.std() + 0.1


def test_a_probe_sees_refined_pixels_and_what_it_makes_doubtful_is_left_out():
    image, _, score = scratched()
    label, before = refined(image, score)
    same = refined(image, score, probe=lambda features: np.zeros(len(features), np.float32))
    assert np.array_equal(same[0], label)
    higher, after = refined(image, score, probe=lambda features: 0 * features[:, 0] + 0.5)
    near = log_odds(score) > -FAR
    moved = log_odds(after) - log_odds(before)
    assert higher.sum() > label.sum() and np.allclose(moved[~near], 0, atol=1e-4)
    assert np.median(moved[near]) == pytest.approx(0.5, abs=1e-3)
    # the second feature is the refined log-odds
    ends = [refined(image, score, probe=lambda f, to=to: to - f[:, 1])[0] for to in (-0.05, 3)]
    assert not ends[0].any() and ends[1].all()


def test_a_probe_changes_regions_but_finds_no_new_ones():
    grey, score = np.full((120, 120, 3), 128, np.uint8), np.full((120, 120), 0.02, np.float32)
    score[15:55, 15:55] = score[80:110, 80:110] = 0.3
    score[20:50, 20:50] = 0.95
    before = refined(grey, score, image_size=120)[0]
    after = refined(grey, score, image_size=120, probe=lambda f: 0 * f[:, 0] + 2)[0]
    assert before[25:45, 25:45].all() and before[60:].sum() == after[60:].sum() == 0
    assert after.sum() > before.sum()


def test_values_are_enlarged_as_opencv_does():
    values = np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32)
    whole = cv2.resize(values, (40, 30), interpolation=cv2.INTER_LINEAR)
    parts = [enlarged(values, (30, 40), top, top + 6) for top in range(0, 30, 6)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


def test_pixels_follow_their_neighbours_as_by_a_loop_over_them():
    draw = np.random.default_rng(2)
    image = cv2.GaussianBlur(draw.integers(0, 256, (24, 30, 3), np.uint8), (0, 0), 2)
    logits = draw.normal(0, 3, (24, 30)).astype(np.float32)
    border = np.zeros((24, 30), bool)
    border[:, 3:25] = draw.random((24, 22)) < 0.7
    colours = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    colours = cv2.GaussianBlur(colours, (0, 0), 1)
    places = [(dy * d, dx * d) for d in (1, 2, 4) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    places = [place for place in places if any(place)]
    values = logits.clip(-3, 3)
    for _ in range(4):
        before = values.copy()
        for y, x in np.argwhere(border):
            at = [(min(max(y + dy, 0), 23), min(max(x + dx, 0), 29)) for dy, dx in places]
            squares = np.array([((colours[y, x] - colours[p]) ** 2).mean() for p in at])
            scale = 0.3 * (np.sqrt(squares.mean()) + 0.5)
            weights = np.exp(-squares / 2 / scale**2)
            values[y, x] = (weights * [before[p] for p in at]).sum() / weights.sum()
    followed = follow_neighbours(logits, image, border, 8)
    np.testing.assert_allclose(followed[border], values[border], atol=1e-3)
    assert np.array_equal(followed[~border], logits[~border]) and (~border).any()
    assert np.array_equal(follow_neighbours(logits, image, border & False, 8), logits)


def test_a_ragged_border_becomes_that_of_the_colours_and_what_is_certain_stays_so():
    draw = np.random.default_rng(5)
    mask = cv2.circle(np.zeros((120, 120), np.uint8), (60, 60), 35, 1, -1)
    image = (90 + 60 * mask[..., None] + draw.normal(0, 6, (120, 120, 3))).clip(0, 255)
    logits = (mask * 2.0 - 1 + draw.normal(0, 1.5, mask.shape)).astype(np.float32)
    logits[60, 60] = 9
    added = addition(logits, image.astype(np.uint8), 16)
    assert iou(logits > 0, mask == 1) < 0.75 < 0.97 < iou(logits + added > 0, mask == 1)
    assert (logits + added)[60, 60] > 6
