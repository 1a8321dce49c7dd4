"""A web page as a browser reads it."""

from html.parser import HTMLParser


class Seen(HTMLParser):
    """What a browser would run or load: elements, event attributes, and links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.handlers: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.elements: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.handlers.append(f"{name}={value}")
            if name in ("src", "hx-get", "action", "data-url") or (tag == "link" and name == "href"):
                self.loaded.append(value or "")
            if name == "title":
                self.text += value or ""
            if tag == "a" and name in ("href", "hx-get"):
                self.links.append(value or "")
        if tag == "script":
            self.scripts.append(dict(attrs).get("src") or "inline")
