"""The files of the demo's page, which a server sends or ``--static`` writes."""

from importlib.resources import files
from typing import Any

from crosschannel.color import ABQuantizer
from crosschannel.colorize.colorizer import Colorizer
from crosschannel.demo.config import DemoConfig

PAGE = ("index.html", "demo.css", "demo.js", "worker.js", "colour.js", "zip.js")


def described(colorizer: Colorizer, config: DemoConfig) -> dict[str, Any]:
    """What the page has to know of a net."""
    task, look = colorizer.task, colorizer.look
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
    """A file of the page, filled in."""
    data = (files("crosschannel.demo") / "page" / name).read_bytes()
    if name != "index.html":
        return data
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined).from_string(data.decode())
    return made.render(title=config.title, policy=policy, where=where).encode()


def policy_of_page(policy: str) -> str:
    """A policy as a page may have it: who frames it, only a header can say."""
    return "; ".join(part for part in policy.split("; ") if not part.startswith("frame-ancestors"))
