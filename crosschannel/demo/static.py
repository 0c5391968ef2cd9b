"""`crosschannel demo --static`: the page as a folder for any host of files. The net is ONNX, and onnxruntime's web
build, which is fetched from npm, runs it in the visitor's browser."""

import hashlib
import io
import json
import tarfile
from importlib.resources import files
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from crosschannel.console import progress_in_bytes, stderr_console
from crosschannel.data.open import cache_folder
from crosschannel.demo.config import DemoConfig
from crosschannel.demo.server import PAGE, described, page_file, policy_of_page
from crosschannel.errors import UserError
from crosschannel.files import whole_folder, written_whole
from crosschannel.hub.export import colorizer_to_onnx
from crosschannel.pretext.colorizer import Colorizer
from crosschannel.web import POLICY

ORT = "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
_SHA512 = (
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
_WHERE = "Your pictures stay on this machine: the net, which the first one waits for, runs in your browser."
_PARTS = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def write_static(colorizer: Colorizer, config: DemoConfig, out: Path) -> None:
    """Write the page, the net and its runtime into a new folder.

    Raises:
        UserError: the folder is not empty, the runtime cannot be fetched, or the net cannot be exported.
    """
    policy = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'") + "; worker-src 'self'"
    with whole_folder(out, "crosschannel demo", r"[\w-]+\.(html|css|js|json|onnx)|ort") as part:
        for name in PAGE:
            (part / name).write_bytes(page_file(name, config, policy_of_page(policy), _WHERE))
        (part / "net.js").write_bytes((files("crosschannel.demo") / "page" / "net-onnx.js").read_bytes())
        (part / "net.json").write_text(json.dumps(described(colorizer, config)), encoding="utf-8")
        (part / "ort").mkdir()
        for name, data in _runtime().items():
            (part / "ort" / name).write_bytes(data)
        colorizer_to_onnx(colorizer, part / "model.onnx")
    stderr_console().print(f"{out}: python -m http.server --directory {out} shows it", markup=False)


def _runtime() -> dict[str, bytes]:
    """The files of onnxruntime-web, from the cache or from npm."""
    path = cache_folder() / "npm" / ORT.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            part.write_bytes(_fetched())
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(f"package/dist/{name}").read() for name in _PARTS}


def _fetched() -> bytes:
    try:
        with urlopen(ORT, timeout=60) as answer:
            total, data = int(answer.headers.get("Content-Length") or 0), io.BytesIO()
            with progress_in_bytes("onnxruntime-web", total) as done:
                while chunk := answer.read(1 << 18):
                    data.write(chunk)
                    done(len(chunk))
    except (URLError, OSError, TimeoutError) as error:
        raise UserError(f"cannot fetch {ORT}: {getattr(error, 'reason', error)}") from None
    if hashlib.sha512(data.getvalue()).hexdigest() != _SHA512:
        raise UserError(f"{ORT} is not what it was: its checksum differs")
    return data.getvalue()
