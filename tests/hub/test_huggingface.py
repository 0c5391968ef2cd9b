"""hf-hub: sources and push, against a local stand-in for the Hub and offline."""

import http.server
import json
import shutil
import sys
import threading

import pytest
from forked import Forked

from crosschannel import UserError, load_backbone, load_colorizer
from crosschannel.cli import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The answers that a snapshot needs: what is in a repository, a file's head, a file."""

    folder = None

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, body: bool):
        if self.path.startswith("/api/models/me/net/tree/"):
            sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
            tree = [{"type": "file", "path": n, "size": size, "oid": f"{size:040x}"} for n, size in sizes.items()]
            self.reply(json.dumps(tree).encode(), body)
        elif self.path.startswith("/api/models/me/net"):
            names = sorted(path.name for path in self.folder.iterdir())
            data = {"id": "me/net", "modelId": "me/net", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            self.reply(json.dumps(data).encode(), body)
        elif self.path.startswith(f"/me/net/resolve/{COMMIT}/"):
            self.reply((self.folder / self.path.rpartition("/")[2]).read_bytes(), body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

    def reply(self, data: bytes, body: bool):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def pushed(finished_run_for_card, tmp_path, monkeypatch):
    """What `push` uploads, caught on its way."""
    import huggingface_hub

    calls = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **o: calls.append((name, o)))
    monkeypatch.setattr(
        huggingface_hub.HfApi,
        "upload_folder",
        lambda self, repo_id, folder_path, **_: shutil.copytree(folder_path, tmp_path / "pushed"),
    )
    run, probe = finished_run_for_card
    assert main(["push", str(run), "me/net", f"--probes=[{probe}]", "--private=true"]) == 0
    assert calls == [("me/net", {"private": True, "exist_ok": True})]
    return tmp_path / "pushed"


def test_what_is_pushed_is_a_folder_that_loads_as_it_is(pushed, finished_run_for_card):
    assert {p.name for p in pushed.iterdir()} == {
        "backbone.safetensors", "colorizer.safetensors", "README.md", "sample.png",
    }  # fmt: skip
    assert load_backbone(str(pushed)).layers == load_backbone(str(finished_run_for_card[0])).layers
    assert (pushed / "README.md").read_text().startswith('---\nlicense: "bsd-2-clause"\n')


def test_a_repository_loads_and_then_loads_offline(pushed, tmp_path):
    Hub.folder = pushed
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    }  # fmt: skip

    def work() -> int:
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]  # it reads its environment when it is imported
        print(load_backbone("hf-hub:me/net").layers[-1], type(load_colorizer("hf-hub:me/net")).__name__)
        return 0

    def load(**more) -> str:
        with Forked(work, {**environment, **more}) as process:
            status, output = process.wait_and_read()
        assert status == 0, output
        return output.splitlines()[-1]

    assert load() == "pool5 Colorizer"
    server.shutdown()
    assert load(HF_HUB_OFFLINE="1") == "pool5 Colorizer"


def test_what_cannot_be_is_one_sentence(monkeypatch, capsys, tmp_path, finished_run_for_card):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for source, message in (("hf-hub:a/b/c", "use owner/name"), ("hf-hub:me/nothing", "is not cached")):
        with pytest.raises(UserError, match=message) as caught:
            load_backbone(source)
        assert "\n" not in str(caught.value)
    assert main(["push", str(finished_run_for_card[0]), "me/net"]) == 2
    assert capsys.readouterr().err.startswith("crosschannel: ")
    assert main(["push", str(tmp_path), "me/net"]) == 2
