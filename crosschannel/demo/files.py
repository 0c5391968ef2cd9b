"""Files of the demo page, served by the server or written by ``--static``."""

from importlib.resources import files
from typing import Any

from crosschannel.color import ABQuantizer
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.demo.config import DemoConfig

PAGE = ("index.html", "demo.css", "demo.js", "worker.js", "colour.js", "zip.js")


def described(colorizer: Colorizer, config: DemoConfig) -> dict[str, Any]:
    """Settings of a colorizer that the page's scripts need."""
    task, look = colorizer.task, colorizer.resize_spec
    return {
        "size": colorizer.size,
        "stride": task.stride,
        "interpolation": look.interpolation,
        "squash": look.squash,
        "half_pixel": look.half_pixel,
        "temperature": colorizer.decoder.temperature,
        "bins": ABQuantizer().bins.double().numpy().tolist() if colorizer.decoder.temperature is not None else [],
        "most_pixels": round(config.megapixels * 1e6),
    }


def page_file(name: str, config: DemoConfig, policy: str, where: str) -> bytes:
    """Read a file of the page; render it if it is the template."""
    data = (files("crosschannel.demo") / "page" / name).read_bytes()
    if name != "index.html":
        return data
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined).from_string(data.decode())
    return made.render(title=config.title, policy=policy, where=where).encode()


def policy_of_page(policy: str) -> str:
    """Remove ``frame-ancestors`` from a policy: browsers ignore it in a <meta> tag."""
    return "; ".join(part for part in policy.split("; ") if not part.startswith("frame-ancestors"))
