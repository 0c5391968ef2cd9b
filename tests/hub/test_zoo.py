"""Published weights from a local server: fetched once, checked, resumed."""

import hashlib
import http.server
import socket
import threading
import time
from dataclasses import replace

import huggingface_hub.constants
import pytest
import torch
import torchvision

from crosschannel import UserError, load_backbone
from crosschannel.cli import main
from crosschannel.hub import network, zoo
from crosschannel.hub.formats import FORMATS


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` by ranges, breaking off after ``most`` bytes an answer."""

    content, most, asked = b"", 1 << 40, []

    def do_GET(self):
        if self.path != "/weights.pth":
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        type(self).asked.append(start)
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A zoo of one entry behind a local server; yields the server's class."""
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "weights.pth")
    Server.content, Server.most, Server.asked = (tmp_path / "weights.pth").read_bytes(), 1 << 40, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/weights.pth"
    digest = hashlib.sha256(Server.content).hexdigest()
    entry = zoo.Entry(address, digest[:8], "a test", "none", "torchvision-alexnet")
    monkeypatch.setattr(zoo, "ZOO", {"mine": entry})
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    yield Server
    server.shutdown()


def test_one_word_fetches_checks_and_keeps(served, tmp_path, capsys):
    assert load_backbone("zoo:mine").layers[0] == "conv1"
    load_backbone("zoo:mine,geometry=padded")
    assert served.asked == [0]  # the second time from the cache
    assert "downloading" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "cache" / "weights").iterdir()} == {"weights.pth", "weights.pth.lock"}


def test_a_download_that_breaks_off_goes_on_where_it_stopped(served, tmp_path):
    served.most = len(served.content) // 5 * 2
    path = zoo.fetch("mine")
    assert path.read_bytes() == served.content and served.asked == [0, served.most, 2 * served.most]
    path.unlink()
    served.most, served.asked = len(served.content) // 9, []
    with pytest.raises(UserError, match="rerun the command to resume"):
        zoo.fetch("mine")
    served.most = 1 << 40
    assert zoo.fetch("mine").read_bytes() == served.content
    assert served.asked[-1] == 3 * (len(served.content) // 9)


def test_a_file_that_is_not_what_was_published_is_thrown_away(served, tmp_path, monkeypatch, capsys):
    for wrong, said in (("00000000", "its SHA256 starts with"), ("0" * 40, "its SHA1 starts with")):
        monkeypatch.setattr(zoo, "ZOO", {"mine": replace(zoo.ZOO["mine"], checksum=wrong)})
        assert main(["fetch", "mine"]) == 2
        error = capsys.readouterr().err
        assert "is not the file that its authors published" in error and said in error
    assert {path.suffix for path in (tmp_path / "cache" / "weights").iterdir()} == {".lock"}


def test_a_file_may_be_known_by_its_sha1(served, monkeypatch):
    known = hashlib.sha1(Server.content).hexdigest()
    monkeypatch.setattr(zoo, "ZOO", {"mine": replace(zoo.ZOO["mine"], checksum=known)})
    assert zoo.fetch("mine").read_bytes() == Server.content


def test_what_cannot_be_had_is_one_sentence(served, monkeypatch, capsys):
    entry = zoo.ZOO["mine"]
    entries = {"gone": replace(entry, url=entry.url + "x"), "nowhere": replace(entry, url="http://127.0.0.1:9/w.pth")}
    monkeypatch.setattr(zoo, "ZOO", entries)
    for name, message in (
        ("gone", "responded with status 404"),
        ("nowhere", "no connection? 127.0.0.1 is unreachable (Connection refused)"),
        ("zoo:other", "unknown zoo entry 'other'"),
    ):
        assert main(["fetch", name]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_list_says_what_is_here(served, capsys):
    assert main(["zoo"]) == 0 and "(fetched)" not in capsys.readouterr().out
    assert main(["fetch", "zoo:mine"]) == 0
    capsys.readouterr()
    assert main(["zoo"]) == 0
    assert any("zoo:mine" in line and "(fetched)" in line for line in capsys.readouterr().out.splitlines())


def test_every_entry_has_an_importer_and_the_checksum_of_its_name():
    from crosschannel.hub.zoo import ZOO

    for entry in ZOO.values():
        assert (entry.format in FORMATS or entry.format == "caffe") and entry.url.startswith("http") and entry.licence
        if entry.algorithm == "sha256":
            assert f"-{entry.checksum}." in entry.url  # the authors publish it in the file's name


@pytest.mark.parametrize("source", ["runs/net-0", "photos", "resnet50", "random:alexnet", "my_nets:net", "weights.pth"])
def test_fetch_lists_the_sources_that_it_accepts(served, tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", source]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"nothing to fetch for {source!r}" in line
    assert "fetch accepts zoo:NAME, hf-hub:OWNER/NAME, torchvision:NAME or timm:NAME" in line
    assert ("it is already on this machine" in line) == (source == "weights.pth")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Simulate a machine without network access and with empty caches."""

    def hang(*_arguments):
        time.sleep(60)

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(network, "_CONNECT_TIMEOUT", 0.2)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CROSSCHANNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.urlopen", hang)

    def refuse(*_arguments, **_options):
        raise OSError("timed out")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("zoo:eccv16", "colorizers.s3.us-east-2.amazonaws.com"),
        ("zoo:caffenet", "dl.caffe.berkeleyvision.org"),
        ("torchvision:squeezenet1_0", "download.pytorch.org"),
        ("timm:resnet10t", "huggingface.co"),
        ("hf-hub:me/net", "huggingface.co"),
    ],
)
def test_missing_network_is_reported_at_once_in_one_sentence(no_network, source, host, capsys):
    start = time.monotonic()
    assert main(["fetch", source]) == 2
    assert time.monotonic() - start < 15
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"no connection? {host} is unreachable (no response within 0.2 s); run `crosschannel fetch {source}`" in line
    assert line.endswith("or pass one of your own runs as --model or --backbone")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and socket.getdefaulttimeout() is None


def test_a_cached_repository_needs_no_network(no_network, tmp_path, monkeypatch):
    commit = "0" * 40
    folder = tmp_path / "hub" / "models--me--net"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "README.md").write_text("a net")
    with pytest.raises(UserError, match=r"hf-hub:me/net has no backbone\.safetensors: only crosschannel nets can be"):
        load_backbone("hf-hub:me/net")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:{port}", "127.0.0.1:{port}"])
def test_connection_check_tries_the_proxy_if_there_is_one(monkeypatch, proxy):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = proxy.format(port=server.getsockname()[1])
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, address)
        assert network.connection_problem("https://nowhere.invalid/weights.pth") == ""
    assert network.connection_problem("https://nowhere.invalid/weights.pth") == "Connection refused"
