"""The pictures of the documentation: `python -m tests.dashboard.screenshots docs/images/dashboard`."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from adapterline.dashboard.access import access_at
from tests.dashboard.browsing import chromium
from tests.dashboard.seeded import every_page, seed
from tests.dashboard.served import served

_TALLEST = 1000  # pixels
_LEFT_OUT = ("problem", "refused")
_WIDE, _PHONE = {"width": 1280, "height": 800}, {"width": 360, "height": 740}


def main(folder: Path) -> None:
    """Writes one picture of each page, and of some on a phone and in the dark."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        # Relative, so that no picture has the name of this machine's folder.
        seeded = seed("sqlite:///index.sqlite", Path("published"))
        access = access_at("127.0.0.1", None, (), no_token=False)
        with served(seeded.index, access) as url, chromium() as browser:
            for name, path in every_page(seeded).items():
                if name in _LEFT_OUT:
                    continue
                _shoot(browser, f"{url}{path}", folder / f"{name}.webp", _WIDE, "light")
            _shoot(browser, f"{url}/adapters", folder / "adapters-phone.webp", _PHONE, "light")
            _shoot(browser, f"{url}{seeded.path}", folder / "version-dark.webp", _WIDE, "dark")


def _shoot(browser: Browser, url: str, file: Path, size: dict[str, int], scheme: str) -> None:
    page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(url)
    page.wait_for_load_state("networkidle")
    whole = Image.open(io.BytesIO(page.screenshot(full_page="phone" not in file.name))).convert("RGB")
    whole.crop((0, 0, whole.width, min(whole.height, _TALLEST))).save(file, "WEBP", quality=40, method=6)
    page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
