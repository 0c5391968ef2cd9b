"""`crosschannel demo --static`: the page as a folder for any host of files. The net is ONNX, and onnxruntime's web
build, which is fetched from npm, runs it in the visitor's browser."""

import json
import tarfile
from importlib.resources import files
from pathlib import Path

from crosschannel.colorize.colorizer import Colorizer
from crosschannel.console import stderr_console
from crosschannel.demo.config import DemoConfig
from crosschannel.demo.files import PAGE, described, page_file, policy_of_page
from crosschannel.errors import UserError
from crosschannel.files import atomic_folder, cache_folder
from crosschannel.hub.export import colorizer_to_onnx
from crosschannel.hub.zoo import Entry, fetch_into
from crosschannel.web import POLICY

ORT = Entry(
    "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz",
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61",
    "onnxruntime's web build",
    "MIT",
    "npm",
)
_WHERE = "Your pictures stay on this machine: the net runs in your browser. The first picture waits for its download."
_PARTS = {  # by their names here: not every host of files says of .mjs that it is JavaScript
    "ort.js": "ort.wasm.min.mjs",
    "ort-wasm.js": "ort-wasm-simd-threaded.mjs",
    "ort-wasm.wasm": "ort-wasm-simd-threaded.wasm",
}


def write_static(colorizer: Colorizer, config: DemoConfig, out: Path) -> None:
    """Write the page, the net and its runtime into a new folder.

    Raises:
        UserError: the folder is not empty, the runtime cannot be fetched, or the net cannot be exported for pictures of
            any shape.
    """
    if not colorizer.exports_any_size:
        raise UserError("the net of this colorizer looks at squares of one size only: --static needs one for any shape")
    policy = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'") + "; worker-src 'self'"
    with atomic_folder(out, "crosschannel demo", r"[\w-]+\.(html|css|js|json|onnx)|ort") as part:
        for name in PAGE:
            (part / name).write_bytes(page_file(name, config, policy_of_page(policy), _WHERE))
        (part / "net.js").write_bytes((files("crosschannel.demo") / "page" / "net-onnx.js").read_bytes())
        (part / "net.json").write_text(json.dumps(described(colorizer, config)), encoding="utf-8")
        (part / "ort").mkdir()
        for name, data in _runtime().items():
            (part / "ort" / name).write_bytes(data)
        colorizer_to_onnx(colorizer, part / "model.onnx")
    stderr_console().print(f"{out}: python -m http.server --directory {out} shows it")


def _runtime() -> dict[str, bytes]:
    """The files of onnxruntime-web, from the cache or from npm."""
    path = fetch_into(cache_folder() / "npm" / ORT.url.rpartition("/")[2], ORT)
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(f"package/dist/{theirs}").read() for name, theirs in _PARTS.items()}
