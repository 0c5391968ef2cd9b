"""Fixtures that many tests share. Real photographs come from the embedded sample; the larger real data sets are
found through CROSSCHANNEL_TEST_DATA (default ../shared/data), and tests that need them skip by name without."""

import io
import os
from pathlib import Path

# Two workers of pytest-xdist share two cores; the nets are so small that a second thread would mostly wait.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    path = Path(os.environ.get("CROSSCHANNEL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (set CROSSCHANNEL_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """The embedded photographs, (H, W, 3) uint8."""
    from crosschannel.data.sample import photographs

    images = photographs()
    return [np.array(Image.open(io.BytesIO(images.read(i))).convert("RGB")) for i in range(len(images))]


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory, photos) -> Path:
    """40 JPEG crops of real photographs in train/CLASS and 10 in val/CLASS."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for label, photo in enumerate(photos):
        for i in range(5):
            split = "train" if i < 4 else "val"
            top = generator.integers(0, photo.shape[0] - 80)
            left = generator.integers(0, photo.shape[1] - 96)
            path = root / split / f"class{label}" / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo[top : top + 80, left : left + 96]).save(path, quality=92)
    return root


@pytest.fixture(scope="session")
def chromium():
    """Debian's browser, by Playwright."""
    import shutil

    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
