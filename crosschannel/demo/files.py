"""Files of the demo page, for the server and for ``--static``."""

from importlib.resources import files
from typing import Any

from crosschannel.color import ABQuantizer
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.demo.config import DemoConfig

PAGE = ("index.html", "demo.css", "demo.js", "worker.js", "colour.js", "zip.js")


def model_settings(colorizer: Colorizer, config: DemoConfig) -> dict[str, Any]:
    """Return the content of ``net.json``: the settings of a colorizer that the page's scripts need."""
    task, resize = colorizer.task, colorizer.resize_spec
    return {
        "size": colorizer.size,
        "stride": task.stride,
        "interpolation": resize.interpolation,
        "squash": resize.squash,
        "half_pixel": resize.half_pixel,
        "temperature": colorizer.decoder.temperature,
        "bins": ABQuantizer().bins.double().numpy().tolist() if colorizer.decoder.temperature is not None else [],
        "most_pixels": round(config.megapixels * 1e6),
    }


def page_file(name: str, config: DemoConfig, policy: str, notice: str) -> bytes:
    """Read a file of the page, and render it if it is the HTML template.

    Args:
        name: name of the file.
        config: config with the title of the page.
        policy: Content-Security-Policy of the page.
        notice: privacy notice for visitors.
    """
    data = (files("crosschannel.demo") / "page" / name).read_bytes()
    if name != "index.html":
        return data
    from jinja2 import Environment, StrictUndefined

    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(data.decode())
    return template.render(title=config.title, policy=policy, notice=notice).encode()


def meta_policy(policy: str) -> str:
    """Return a policy without ``frame-ancestors``, which browsers ignore in a <meta> tag."""
    return "; ".join(rule for rule in policy.split("; ") if not rule.startswith("frame-ancestors"))
