"""`crosschannel demo --static`: write the demo page as static files.

The model is exported to ONNX and runs in the visitor's browser with onnxruntime-web, which is downloaded from npm.
"""

import json
import tarfile
from importlib.resources import files
from pathlib import Path

from crosschannel.colorize.colorizer import Colorizer
from crosschannel.console import stderr_console
from crosschannel.demo.config import DemoConfig
from crosschannel.demo.files import PAGE, meta_policy, model_settings, page_file
from crosschannel.errors import UserError
from crosschannel.files import atomic_folder, cache_folder
from crosschannel.hub.export import colorizer_to_onnx
from crosschannel.hub.zoo import Entry, fetch_into
from crosschannel.web import POLICY

ONNX_RUNTIME = Entry(
    "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz",
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61",
    "onnxruntime-web",
    "MIT",
    "npm",
)
_NOTICE = "Your pictures stay on this machine. The model is downloaded with the first picture and runs in your browser."
_RUNTIME_FILES = {  # name in the output → name in the package; some static hosts do not serve .mjs as JavaScript
    "ort.js": "ort.wasm.min.mjs",
    "ort-wasm.js": "ort-wasm-simd-threaded.mjs",
    "ort-wasm.wasm": "ort-wasm-simd-threaded.wasm",
}


def write_static(colorizer: Colorizer, config: DemoConfig, out: Path) -> None:
    """Write the page, the model and onnxruntime-web to a new folder.

    Raises:
        UserError: the folder is not empty, onnxruntime-web cannot be downloaded, or the model cannot be exported for
            inputs of any size.
    """
    if not colorizer.exports_any_size:
        raise UserError("--static requires a model that accepts any input size; this one accepts only one square size")
    policy = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'") + "; worker-src 'self'"
    with atomic_folder(out, "crosschannel demo", r"[\w-]+\.(html|css|js|json|onnx)|ort") as temp_folder:
        for name in PAGE:
            (temp_folder / name).write_bytes(page_file(name, config, meta_policy(policy), _NOTICE))
        (temp_folder / "net.js").write_bytes((files("crosschannel.demo") / "page" / "net-onnx.js").read_bytes())
        (temp_folder / "net.json").write_text(json.dumps(model_settings(colorizer, config)), encoding="utf-8")
        (temp_folder / "ort").mkdir()
        for name, data in _load_runtime().items():
            (temp_folder / "ort" / name).write_bytes(data)
        colorizer_to_onnx(colorizer, temp_folder / "model.onnx")
    stderr_console().print(f"{out}: to view the page, run python -m http.server --directory {out}")


def _load_runtime() -> dict[str, bytes]:
    """Read the files of onnxruntime-web from the cache, after downloading them from npm if necessary."""
    path = fetch_into(cache_folder() / "npm" / ONNX_RUNTIME.url.rpartition("/")[2], ONNX_RUNTIME)
    with tarfile.open(path) as archive:
        return {name: archive.extractfile(f"package/dist/{source}").read() for name, source in _RUNTIME_FILES.items()}
