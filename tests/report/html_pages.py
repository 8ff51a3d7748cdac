"""What tests ask of every page: that it is whole HTML, and fetches nothing from elsewhere."""

import re
from html.parser import HTMLParser

WITHOUT_END = ("meta", "img")
PICTURE = "data:image/png;base64,"


class Page(HTMLParser):
    """All tags of a page, with their attributes, and its text; each tag must be closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open += [] if tag in WITHOUT_END else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def with_tag(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all tags of one kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def stands_alone(text: str) -> Page:
    """The page, which is whole, holds its pictures and points nowhere but into itself."""
    assert text.startswith("<!doctype html>\n")
    page = Page(text)
    assert page.tags[0][0] == "html"
    without_pictures = re.sub(rf"{PICTURE}[\w+/=]+", "", text)
    assert re.search(r"https?:|//|@import|url\(", without_pictures) is None
    ids = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        for name in ("src", "href", "srcset"):
            value = attributes.get(name)
            assert value is None or value in ids or value.startswith(PICTURE), (tag, name)
    return page
