"""Shards behind a real HTTP server, which stays, dies and comes back."""

import functools
import http.server
import threading
from pathlib import Path

import pytest
import torch
from range_server import make_server, start_server

from crosschannel import UserError
from crosschannel.cli import main
from crosschannel.data import CentreCrop, CropConfig, Stream, TrainingCrops, load_batches, open_images

CROP = CropConfig(size=24, resize=32)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, photo_folder):
    out = tmp_path_factory.mktemp("http") / "shards"
    assert main(["shard", str(photo_folder), str(out)]) == 0
    return out


@pytest.fixture
def address(shards):
    with make_server(shards) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def pixels(data: str, split: int = 0, workers: int = 0) -> torch.Tensor:
    images = open_images(data)[split]
    view = CentreCrop(CROP.size, CROP.resize) if split else TrainingCrops(CROP)
    stream = Stream(images, view, None if split else 4)
    return torch.cat([b.images for b in load_batches(stream, 0, len(images), 10, workers=workers)])


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_give_the_same_crops_over_http_as_from_the_disk(shards, address, workers):
    for split in (0, 1):
        assert torch.equal(pixels(address, split, workers), pixels(str(shards), split))
    assert open_images(address)[0].classes == open_images(str(shards))[0].classes
    pattern = address + "/train-{000000..000000}.tar"
    assert len(open_images(pattern, val_share=0.25)[1]) == 10


def test_what_the_server_lacks_is_one_sentence(shards, address, tmp_path):
    with pytest.raises(UserError, match=r"no shards\.txt"):
        open_images(f"{address}/nowhere")
    with pytest.raises(UserError, match=r"has no matching \.idx next to it"):
        open_images(f"{address}/gone.tar")


def test_a_server_without_ranges_is_refused(shards):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        images = open_images(f"http://127.0.0.1:{server.server_address[1]}")[0]
        with pytest.raises(UserError, match="Range"):
            images.read(0)
        server.shutdown()


@pytest.fixture
def port(address):
    """A port that was free a moment ago."""
    return make_server(Path()).server_address[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_dies_and_comes_back_is_waited_for(shards, port, workers):
    server = start_server(shards, port)
    images = open_images(f"http://127.0.0.1:{port}")[0]
    batches = load_batches(Stream(images, TrainingCrops(CROP), 4), 0, 120, 10, workers=workers)
    got = [next(batches).images for _ in range(2)]
    server.kill()
    server.wait()
    revived = []
    threading.Timer(0.5, lambda: revived.append(start_server(shards, port))).start()
    got += [batch.images for batch in batches]
    revived[0].kill()
    local = Stream(open_images(str(shards))[0], TrainingCrops(CROP), 4)
    assert torch.equal(torch.cat(got), torch.cat([b.images for b in load_batches(local, 0, 120, 10)]))
