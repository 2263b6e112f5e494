# SPDX-License-Identifier: Apache-2.0
"""Pages in headless Chromium: what they look like, what is in them, what they complain about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or tools/setup.sh browser"
)

PROBE = """<script>
addEventListener("load", () => {
  const box = (e) => e.getBoundingClientRect();
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const figures = [...document.querySelectorAll("figure svg")].map((svg) => {
    const texts = [...svg.querySelectorAll("text")].filter((t) => t.textContent.trim());
    const boxes = texts.map(box), card = box(svg.closest("figure"));
    let crossed = [];
    for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++)
      if (meet(boxes[i], boxes[j])) crossed.push(texts[i].textContent + " | " + texts[j].textContent);
    return {label: svg.getAttribute("aria-label"), width: box(svg).width, height: box(svg).height, texts: texts.length,
            clipped: texts.filter((t, i) => !inside(boxes[i], card)).map((t) => t.textContent), crossed,
            shapes: svg.querySelectorAll("path, use").length};
  });
  const found = {width: document.documentElement.scrollWidth, window: innerWidth, height: document.documentElement.scrollHeight,
    sections: [...document.querySelectorAll("section[id]")].filter((s) => box(s).height > 40).map((s) => s.id), figures,
    ids: [...document.querySelectorAll("[id]")].map((e) => e.id), text: document.body.innerText,
    scripts: document.querySelectorAll("script").length,
    background: getComputedStyle(document.body).backgroundColor};
  const pre = document.createElement("pre"); pre.id = "probe"; pre.textContent = JSON.stringify(found); document.body.append(pre);
});
</script>"""


@dataclass
class Browser:
    folder: Path

    def _run(self, page: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert CHROMIUM is not None
        profile = self.folder / "profile"
        return subprocess.run(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
             "--no-first-run", "--disable-background-networking", "--enable-logging=stderr", "--log-level=0",
             f"--user-data-dir={profile}", *arguments, page.resolve().as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip

    def console(self, page: Path) -> list[str]:
        """What the page as it is says on the console."""
        lines = self._run(page, "--dump-dom").stderr.splitlines()
        return [line for line in lines if ":CONSOLE" in line]

    def probe(self, page: Path, width: int = 1200, *arguments: str) -> dict[str, Any]:
        """Measures of a copy that a script may run in."""
        html = page.read_text(encoding="utf-8")
        policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", html)
        assert policy is not None
        copy = self.folder / "probed.html"
        copy.write_text(html.replace(policy[0], "").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        dom = self._run(
            copy, "--dump-dom", "--virtual-time-budget=3000", f"--window-size={width},1000", *arguments
        ).stdout
        found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
        assert found is not None, dom[-2000:]
        import html as entities

        result: dict[str, Any] = json.loads(entities.unescape(found[1]))
        return result

    def screenshot(self, page: Path, width: int, height: int, *arguments: str) -> Any:
        """Pixels: height x width x 3 in [0, 1]."""
        from matplotlib import image

        path = self.folder / "page.png"
        path.unlink(missing_ok=True)
        self._run(page, f"--screenshot={path}", f"--window-size={width},{height}", *arguments)
        return image.imread(path)[..., :3]
