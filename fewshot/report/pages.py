"""Pages of HTML that stand alone: the templates beside this file, filled, with pictures inside of them."""

import base64
from typing import Any

import jinja2


def fill(template: str, **content: Any) -> str:
    """The template of that name with its places filled; what is filled in is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.PackageLoader("fewshot", "report"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**content)


def data_uri(png: bytes) -> str:
    """A PNG as the address of a picture that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
