"""The page in a browser: what a user does, and that the masks are those of the predictor."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from tests.tools.app.app_data import SIZE, answer, defect, png, read

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
IMAGE, MASK = defect(0, side=30)
QUERY = defect(1, (100, 200), side=30)[0]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 30_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page for a further user; no page may have a fault."""
    contexts, faults = [], []

    def open_page(viewport=WIDE):
        touch = viewport is NARROW
        contexts.append(browser.new_context(viewport=viewport, has_touch=touch))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(address)
        page.wait_for_selector("#examples button")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def upload(page, selector, **images):
    files = [{"name": f"{name}.png", "mimeType": "image/png", "buffer": content}
             for name, content in images.items()]  # fmt: skip
    page.set_input_files(selector, files)
    page.wait_for_selector("#progress", state="hidden")


def paint(page, *places):
    """Draw through pixels (x, y) of the image in the editor, with a finger where there is touch."""
    pane = page.locator("[data-pane=marks]")
    pane.scroll_into_view_if_needed()
    box, (height, width) = pane.bounding_box(), SIZE
    scale = min(box["width"] / width, box["height"] / height)
    left, top = box["width"] - width * scale, box["height"] - height * scale
    points = [{"x": box["x"] + left / 2 + (x + 0.5) * scale,
               "y": box["y"] + top / 2 + (y + 0.5) * scale} for x, y in places]  # fmt: skip
    if page.viewport_size == NARROW:
        hand = page.context.new_cdp_session(page)
        for kind, point in zip(["touchStart"] + ["touchMove"] * len(points), points, strict=False):
            hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        hand.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        return
    page.mouse.move(**points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(**point, steps=4)
    page.mouse.up()


def pinch(page):
    """Spread two fingers, one after the other, in the editor."""
    pane = page.locator("[data-pane=marks]")
    pane.scroll_into_view_if_needed()
    box, hand = pane.bounding_box(), page.context.new_cdp_session(page)
    middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    fingers = [dict(middle, id=number) for number in (0, 1)]
    send = "Input.dispatchTouchEvent"
    hand.send(send, {"type": "touchStart", "touchPoints": fingers[:1]})
    for spread in (0, 20, 60):
        fingers[1] = fingers[1] | {"x": middle["x"] + 20 + spread}
        kind = "touchMove" if spread else "touchStart"
        hand.send(send, {"type": kind, "touchPoints": fingers})
    hand.send(send, {"type": "touchEnd", "touchPoints": []})


def set_range(page, selector, value):
    page.locator(selector).evaluate(
        "(e, value) => { e.value = value; e.oninput?.({target: e}) }", value
    )


def downloaded(page, selector):
    with page.expect_download() as download:
        page.click(selector)
    with open(download.value.path(), "rb") as file:
        return file.read()


def segmented(page, count):
    """Wait until so many queries are answered."""
    page.wait_for_selector("#progress", state="hidden")
    answered = page.locator("#queries .found, #queries .none")
    answered.nth(count - 1).wait_for()
    page.wait_for_selector("#correct:enabled")
    return answered.all_inner_texts()


def marks_on_server(page):
    """Of the first support, as it was taught: types and masks."""
    text = page.locator("#supports .pictures img").first.get_attribute("src").split("?")[0]
    types = page.request.get(f"{page.url}{text}/marks").json()["types"]
    return {kind: np.repeat(np.arange(len(runs)) % 2, runs).reshape(MASK.shape).astype(np.uint8)
            for kind, runs in types.items()}  # fmt: skip


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_teach_segment_threshold_correct_and_take_home(opened, predictor, viewport):
    page = opened(viewport)
    upload(page, "#add-supports", part=png(IMAGE))
    set_range(page, "#size", 0.5)  # 20 pixels
    if viewport is NARROW:
        whole = page.locator("[data-pane=marks]").screenshot()
        pinch(page)  # zooms and does not paint
        assert page.locator("[data-pane=marks]").screenshot() != whole
        page.click("#editor [data-do=fit]")
        page.wait_for_timeout(100)
        assert page.locator("[data-pane=marks]").screenshot() == whole
    paint(page, (98, 68), (112, 68), (112, 82), (98, 82))
    page.locator(".teach >> visible=true").first.click()
    page.wait_for_selector("#taught:has-text('Taught: defect')")
    upload(page, "#add-queries", query=png(QUERY))
    segmented(page, 1)

    taught = marks_on_server(page)["defect"]
    stroke = np.zeros_like(MASK)
    corners = np.array([(98, 68), (112, 68), (112, 82), (98, 82)])
    cv2.polylines(stroke, [corners], False, 1, 20)
    assert np.count_nonzero(stroke != taught) < 0.12 * stroke.sum()
    expected = answer(predictor, [(IMAGE, taught)], QUERY)
    assert expected.mask.any()
    mask = read(downloaded(page, "#save-mask"))
    assert np.array_equal(mask == 255, expected.mask)

    greatest = float(expected.score.max())
    set_range(page, "#threshold", round(greatest + 0.01, 3))
    page.wait_for_selector("#queries .none")
    page.wait_for_selector("#defects :text('No defect above')")
    assert not read(downloaded(page, "#save-mask")).any()
    page.click("#reset")
    assert np.array_equal(read(downloaded(page, "#save-mask")) == 255, expected.mask)
    page.wait_for_selector("#defects tbody tr >> nth=0 >> text=defect")

    page.click("#correct")
    page.click("[data-do=clear] >> visible=true")
    page.check("#normal")
    page.locator(".teach >> visible=true").first.click()
    segmented(page, 1)
    corrected = answer(predictor, [(IMAGE, taught), (QUERY, None)], QUERY)
    assert not np.array_equal(corrected.mask, expected.mask)
    assert np.array_equal(read(downloaded(page, "#save-mask")) == 255, corrected.mask)
    assert downloaded(page, "#memory")[:1] and downloaded(page, "#pack")[:2] == b"PK"


def test_brush_eraser_undo_and_zoom_change_the_pixels_they_show(opened):
    page = opened()
    upload(page, "#add-supports", part=png(IMAGE))
    set_range(page, "#size", 0)  # one pixel
    paint(page, (10, 20), (40, 20))
    paint(page, (10, 30), (40, 30))
    page.click("[data-do=undo] >> visible=true")
    page.keyboard.press("e")
    paint(page, (20, 20), (25, 20))
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+Shift+z")
    page.keyboard.press("b")
    page.click("#types >> text=Add type")
    paint(page, (200, 100), (210, 100))
    for _ in range(2):  # at the middle of the pane, where the image's middle stays
        page.click("#editor [data-do=in]")
    paint(page, (149.4, 99.4), (149.4, 99.4))
    page.click("#supports .teach")
    page.wait_for_selector("#taught:has-text('defect 2')")
    expected = {kind: np.zeros_like(MASK) for kind in ("defect", "defect 2")}
    expected["defect"][20, 10:41] = 1
    expected["defect 2"][100, 200:211] = 1
    expected["defect 2"][99, 149] = 1
    taught = marks_on_server(page)
    assert all(np.array_equal(taught[kind], mask) for kind, mask in expected.items())
    page.reload()  # the server still has all of it
    page.wait_for_selector("#supports .found:has-text('defect, defect 2')")


def test_bad_uploads_are_told_and_the_page_lives_on(opened):
    page = opened()
    upload(page, "#add-supports", broken=b"no image", part=png(IMAGE))
    assert "broken.png: cannot be read" in page.inner_text("#messages")
    page.click("#supports .teach")
    page.wait_for_selector("#messages :text('nothing is marked')")
    upload(page, "#load-mask", small=png(MASK[:50]))
    assert "small.png: is of 50 x 300 pixels" in page.inner_text("#messages")
    upload(page, "#load-mask", mask=png(MASK * 255))
    page.click("#supports .teach")
    page.wait_for_selector("#taught:has-text('Taught: defect')")
    assert np.array_equal(marks_on_server(page)["defect"], MASK)


def test_two_users_have_two_sessions_and_an_example_takes_one_click(opened):
    first, second = opened(), opened(NARROW)
    upload(first, "#add-supports", part=png(IMAGE))
    second.click("#examples button >> nth=0")
    second.locator("#queries .found, #queries .none").first.wait_for()
    second.click("#stop")
    second.wait_for_selector("#progress", state="hidden")
    second.wait_for_selector("#segment:has-text('Segment')")  # what is left
    second.reload()
    segmented(second, 1)
    assert second.locator("#queries li").count() == 3
    assert first.locator("#queries li").count() == 0
    assert second.evaluate("document.documentElement.scrollWidth") == 390
    address = second.locator("#queries img").first.get_attribute("src")
    for page, status in ((first, 404), (second, 200)):
        assert page.request.get(f"{page.url}{address}").status == status
