"""The pictures of docs/operate/ui.md: ``python -m integration.docs.ui_pictures docs/pictures``.

Generated requests in the page, in a real Chromium. Not a test: only a person can judge a picture.
"""

import sys
import tempfile
from pathlib import Path

from tests.harness import served
from tests.harness.chromium import CHROMIUM, browser, serving

from corevital_otel.store.listing import Filter, Listing
from corevital_otel.ui.application import Application

WIDTH = 1440


def main(folder: Path) -> None:
    if not CHROMIUM.exists():
        sys.exit("there is no Chromium: make .venv/chromium/.unpacked")
    with tempfile.TemporaryDirectory() as name:
        db = served.fill(Path(name) / "corevital.db", served.traffic(1500), text=served.generated_text)
        loop = Filter(flag="repetition_loop_detected", above=0.3)
        found = Listing(db).page(loop, "tokens", descending=True, size=200, number=0)
        report = min(found, key=lambda one: abs(one.output_tokens - 160))
        places = {
            "requests": ("/requests?since=24h&sort=-risk", 760),
            "request": (f"/request?id={report.request_id}", None),
            "trends": ("/trends?since=24h", None),
            "compare": ("/compare?a=model%3Dqwen3-8b&b=model%3Dsupport-adapter", None),
        }
        with serving(Application(db, None)) as url, browser() as chromium:
            for scheme in ("light", "dark"):
                tab = chromium.new_page(viewport={"width": WIDTH, "height": 760}, color_scheme=scheme)
                for page, (place, height) in places.items():
                    tab.goto(url + place)
                    tab.wait_for_timeout(800)
                    tab.screenshot(path=folder / f"ui-{page}-{scheme}.png", full_page=height is None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
