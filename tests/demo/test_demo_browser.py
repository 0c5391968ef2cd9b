"""The demo in a real browser, in both forms: its colours are the Python colorizer's.

Needs Debian's chromium; the static form needs npm's registry, unless its runtime is in the cache.
"""

import io
import zipfile

import numpy as np
import pytest
from browsers import free_port, served, until
from PIL import Image

from crosschannel.cli import main
from crosschannel.hub import load_colorizer

SIZE = 54  # looks at 56 pixels: sides are multiples of 8

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["server", "static"])
def address(request, trained, tmp_path_factory):
    port = free_port()
    if request.param == "server":
        words = ["crosschannel.cli", "demo", f"--model={trained}", f"--port={port}", "--megapixels=2", f"--size={SIZE}"]
    else:
        folder = tmp_path_factory.mktemp("static") / "demo"
        assert main(["demo", f"--model={trained}", f"--static={folder}", "--megapixels=2", f"--size={SIZE}"]) == 0
        words = ["http.server", str(port), "--bind=127.0.0.1", f"--directory={folder}"]
    with served(*words, port=port) as (address, _):
        yield address


@pytest.fixture
def page(chromium, address):
    page = chromium.new_page(accept_downloads=True)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=60000)
    yield page
    assert not page.problems
    page.close()


@pytest.fixture
def pictures(photos, tmp_path):
    """A landscape with an orientation in its EXIF data, a small one, and one that is too large."""
    paths = [tmp_path / name for name in ("wide.jpg", "small.png", "large.png", "words.png")]
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photos[0][:200, :300]).save(paths[0], quality=95, exif=turned)
    Image.fromarray(photos[1][:40, :61]).save(paths[1])
    Image.new("RGB", (2000, 1500), "red").save(paths[2])
    paths[3].write_text("no picture")
    return paths


def add(page, *paths) -> None:
    before = page.evaluate("Number(document.getElementById('after').dataset.drawn || 0)")
    page.set_input_files("#files", [str(path) for path in paths])
    until(page, f"Number(document.getElementById('after').dataset.drawn || 0) >= {before + len(paths)}", 120)


def downloaded(page, button: str) -> bytes:
    with page.expect_download(timeout=60000) as waiting:
        page.click(button)
    with open(waiting.value.path(), "rb") as file:  # noqa: PTH123
        return file.read()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def slide(page, slider: str, value: float) -> None:
    drawn = page.evaluate("Number(document.getElementById('after').dataset.drawn)")
    page.evaluate(
        "([id, value]) => { const input = document.getElementById(id); input.value = value;"
        " input.dispatchEvent(new Event('input', { bubbles: true })); }",
        [slider, str(value)],
    )
    until(page, f"Number(document.getElementById('after').dataset.drawn) > {drawn}")


def test_colours_are_the_colorizers(page, pictures, trained):
    colorizer = load_colorizer(str(trained))
    colorizer.size = SIZE
    wide, small, *_ = pictures
    add(page, wide)
    found = pixels(downloaded(page, "#save"))
    upright = Image.open(wide).transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(colorizer(upright)).astype(int)
    assert found.shape == expected.shape == (300, 200, 3)
    assert np.abs(found - expected).max() <= 2
    slide(page, "temperature", 1)
    slide(page, "saturation", 1.5)
    colorizer.saturation = 1.5
    expected = np.asarray(colorizer(upright, 1.0)).astype(int)
    assert np.abs(pixels(downloaded(page, "#save")) - expected).max() <= 2
    add(page, small)
    data = downloaded(page, "#save-all")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None and archive.namelist() == ["wide-coloured.png", "small-coloured.png"]
        found = pixels(archive.read("small-coloured.png"))
    assert np.abs(found - np.asarray(colorizer(Image.open(small), 1.0)).astype(int)).max() <= 2


def test_pictures_that_come_while_others_are_looked_at(page, pictures):
    """Two additions at once, and a picture without a ground: names, sizes and pixels stay together."""
    wide, small, large, _ = pictures
    clear = small.with_name("SMALL.png")
    rgba = np.dstack([np.full((50, 50, 3), 90, np.uint8), np.zeros((50, 50), np.uint8)])
    rgba[:25, :, 3] = 255
    Image.fromarray(rgba).save(clear)
    for paths in ([wide], [large, small, clear]):  # the second does not wait for the first
        page.set_input_files("#files", [str(path) for path in paths])
    until(page, "document.querySelectorAll('#strip li').length === 3", 120)
    said = "document.getElementById('message').textContent"
    until(page, f"{said}.includes('3 coloured') && {said}.includes('3.0 megapixels')")
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#save-all"))) as archive:
        names = archive.namelist()
        assert names == ["wide-coloured.png", "small-coloured.png", "SMALL-coloured-2.png"]
        found = [Image.open(io.BytesIO(archive.read(name))) for name in names]
    assert [picture.size for picture in found] == [(200, 300), (61, 40), (50, 50)]
    assert np.array_equal(np.asarray(found[2])[..., 3], rgba[..., 3])


def test_pictures_chosen_while_the_page_loads_are_coloured_afterwards(chromium, address, pictures, trained):
    """Pictures are chosen twice and dropped once before the description of the net arrives."""
    wide, small, *_ = pictures
    routes = []
    page = chromium.new_page(accept_downloads=True)
    page.route("**/net.json", lambda route: routes.append(route))
    page.goto(address)
    said = "document.getElementById('message').textContent"
    until(page, f"{said} === 'Loading the model …'")
    page.set_input_files("#files", [str(wide)])
    until(page, f"{said} === 'Loading the model … 1 picture is waiting.'")
    page.set_input_files("#files", [str(small)])
    until(page, f"{said} === 'Loading the model … 2 pictures are waiting.'")
    drop(page, "dropped.png", png())
    until(page, f"{said} === 'Loading the model … 3 pictures are waiting.'")
    assert page.evaluate("document.querySelectorAll('#strip li').length") == 0
    page.wait_for_timeout(500)
    for route in routes:
        route.continue_()
    until(page, f"{said} === '3 coloured.'", 120)
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#save-all"))) as archive:
        names = ["wide-coloured.png", "small-coloured.png", "dropped-coloured.png"]
        assert archive.namelist() == names
        coloured = pixels(archive.read(names[1]))
    colorizer = load_colorizer(str(trained))
    colorizer.size = SIZE
    assert np.abs(coloured - np.asarray(colorizer(Image.open(small))).astype(int)).max() <= 2
    page.close()


def test_a_missing_description_is_reported_while_pictures_wait(chromium, address):
    page, routes = chromium.new_page(), []
    page.route("**/net.json", lambda route: routes.append(route))
    page.goto(address)
    image = {"name": "a.png", "mimeType": "image/png", "buffer": png()}
    page.set_input_files("#files", image)
    until(page, "document.getElementById('message').textContent.includes('1 picture is waiting')")
    routes[0].fulfill(status=404, body="gone")
    for _ in range(2):
        until(page, "/reload the page/i.test(document.getElementById('message').textContent)")
        page.set_input_files("#files", image)  # changes nothing
    page.close()


def test_a_picture_chosen_before_the_script_loads_is_coloured(chromium, address):
    page, routes = chromium.new_page(), []
    page.route("**/demo.js", lambda route: routes.append(route))
    page.goto(address, wait_until="commit")
    page.wait_for_selector("#files")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png()})
    routes[0].continue_()
    until(page, "document.getElementById('message').textContent === 'Coloured.'", 120)
    page.close()


def drop(page, name: str, data: bytes) -> None:
    """Drop a file onto the page."""
    transfer = page.evaluate_handle(
        "([name, bytes]) => { const transfer = new DataTransfer();"
        " transfer.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' })); return transfer; }",
        [name, list(data)],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def test_a_page_that_is_not_whole_says_so(chromium, address):
    for missing in ("net.js", "colour.js", "net.json"):
        page = chromium.new_page()
        page.route(f"**/{missing}", lambda route: route.fulfill(status=404, body="gone"))
        page.goto(address)
        if missing != "net.json":
            page.wait_for_selector("body[data-ready]", timeout=60000)
            page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png()})
        until(page, "/reload the page/i.test(document.getElementById('message').textContent)")
        page.close()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(file, "PNG")
    return file.getvalue()


def test_what_cannot_be_is_said(page, pictures):
    _, small, large, words = pictures
    page.set_input_files("#files", [str(large)])
    until(page, "document.getElementById('message').textContent.includes('megapixels')")
    page.set_input_files("#files", [str(words)])
    until(page, "document.getElementById('message').textContent.includes('not a picture')")
    assert page.is_hidden("#result")
    add(page, small)
    assert page.is_visible("#result") and page.is_hidden("#save-all")
    page.evaluate("document.getElementById('split').value = 20")
    page.dispatch_event("#split", "input")
    assert "80%" in page.evaluate("document.getElementById('before').style.clipPath")


def test_nothing_leaves_the_machine_but_lightness(chromium, address, pictures):
    sent = []
    page = chromium.new_page()
    page.on("request", lambda r: sent.append((r.method, r.url, len(r.post_data_buffer or b""))))
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=60000)
    add(page, pictures[1])
    slide(page, "temperature", 0.5)
    posts = [(url, size) for method, url, size in sent if method == "POST"]
    assert all(url.startswith(address) or url.startswith("blob:") for _, url, _ in sent)
    assert len(posts) <= 1 and all(url.endswith("/predict") and size < 100_000 for url, size in posts)
    page.close()
