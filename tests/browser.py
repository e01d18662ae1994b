"""Open reports in headless Chromium and check how they render: `nox -s browser`.

For each page, at phone and desktop width, light and dark: the console is empty, the page makes no
further request, every figure has a size, and nothing is wider than the window. On a desktop no open
table is cut off. The filters of the measurements hide what they say, and a permalink leads to its line.
Screenshots go to a folder, for a person to look at.
"""

import argparse
import base64
import itertools
import json
import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

WIDTHS = (390, 1400)
SCHEMES = ("light", "dark")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-dev-shm-usage --disable-background-networking --disable-component-update "
    "--hide-scrollbars"
)
# what must be on a page of a verification, whatever came of it; and all that may be on others
VERIFICATION = {"verdicts", "checks", "made"}
OTHERS = ({"speed", "made"}, {"changes"}, {"drift"}, {"changes", "drift"},
          {"causes", "changes"}, {"causes", "changes", "drift"})  # fmt: skip  # benchmark, comparisons
LOOK = """
const boxes = [...document.querySelectorAll('svg[role=img]')].map(e => e.getBoundingClientRect());
const wide = [...document.querySelectorAll('body *')].filter(
  e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 1);
return {
  figures: boxes.length, small: boxes.filter(b => b.width < 50 || b.height < 20).length,
  captions: document.querySelectorAll('figure').length,
  overflow: document.documentElement.scrollWidth - innerWidth,
  wide: wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120)),
  cut: [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.getAttribute('aria-label')),
  sections: [...document.querySelectorAll('section')].map(e => e.id),
  paper: getComputedStyle(document.body).backgroundColor,
  scripts: document.scripts.length, height: document.documentElement.scrollHeight,
};
"""


FILTER = """
const part = document.querySelector('#measurements');
const lines = () => [...part.querySelectorAll('tr[id]')].filter(e => e.checkVisibility());
const wrong = [];
const expect = (what, right) => {
  const shown = lines(), all = [...part.querySelectorAll('tr[id]')].filter(right);
  if (shown.length !== all.length || !shown.every(right)) {
    wrong.push(`${what}: ${shown.length} lines, expected ${all.length}`);
  }
  const hollow = e => e.checkVisibility() && !shown.some(line => e.contains(line));
  const empty = [...part.querySelectorAll('tbody')].filter(hollow);
  if (empty.length) wrong.push(`${what}: ${empty.length} empty groups`);
};
const all = name => part.querySelector(`input[name=${name}]`);
const fails = e => e.classList.contains('fails');
expect('no filter', e => true);
part.querySelector('#v-fails').click();
expect('failures', fails);
for (const layer of part.querySelectorAll('input[name=layer][id]')) {
  layer.click();
  expect(`failures of ${layer.id}`, e => fails(e) && e.classList.contains(layer.id.toUpperCase()));
}
if (all('layer')) all('layer').click();
all('verdict').click();
for (const check of part.querySelectorAll('input[name=check][id]')) {
  check.click();
  expect(`check ${check.id}`, e => e.parentElement.classList.contains(check.id));
}
all('check').click();
expect('all again', e => true);
const last = lines().at(-1);
location.hash = last.id;
return [wrong, last.id];
"""
LINKED = """
const line = document.getElementById(arguments[0]).getBoundingClientRect();
return line.top >= 0 && line.bottom <= innerHeight && line.height > 0;
"""


def filtered(chrome: webdriver.Chrome) -> list[str]:
    """What is wrong with the filters and permalinks of the page that is open."""
    wrong, line = chrome.execute_script(FILTER)
    WebDriverWait(chrome, 5).until(lambda each: each.execute_script("return location.hash"))
    if not chrome.execute_script(LINKED, line):
        wrong.append(f"permalink: #{line} is not in view")
    return list(wrong)


def browser(profile: str) -> webdriver.Chrome | None:
    """Debian's Chromium with its driver, or None where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        return None
    options = Options()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def visit(chrome: webdriver.Chrome, page: Path, width: int, scheme: str, shots: Path) -> list[str]:
    """Load a page once and return everything that is wrong with it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    prefers = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": prefers})
    address = page.resolve().as_uri()
    chrome.get("about:blank")  # whatever came before, the browser's own start page too, is over
    for log in ("performance", "browser"):
        chrome.get_log(log)
    chrome.get(address)
    complete = "return document.readyState === 'complete'"
    WebDriverWait(chrome, 20).until(lambda each: each.execute_script(complete))
    seen = chrome.execute_script(LOOK)
    wrong = [f"console: {entry['message']}" for entry in chrome.get_log("browser")]
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    wrong += [f"request: {url[:200]}" for url in asked if url != address and not url.startswith("data:")]
    if address not in asked:
        wrong.append("the page's own request was not seen: the log of requests is not to be trusted")
    if seen["overflow"] > 0:
        wrong.append(f"overflow: {seen['overflow']} px beyond the window: {seen['wide']}")
    if seen["small"] or seen["figures"] != seen["captions"]:
        wrong.append(f"figures: {seen['figures']} of {seen['captions']}, {seen['small']} without a size")
    if seen["cut"] and width > 1000:
        wrong.append(f"cut off: {seen['cut']}")
    if seen["scripts"]:
        wrong.append(f"scripts: {seen['scripts']}")
    if not set(seen["sections"]) >= VERIFICATION and set(seen["sections"]) not in OTHERS:
        wrong.append(f"sections missing: there is only {seen['sections']}")
    if (sum(map(int, seen["paper"].strip("rgba()").split(",")[:3])) > 384) != (scheme == "light"):
        wrong.append(f"{scheme}: the paper is {seen['paper']}")
    clip = {"x": 0, "y": 0, "width": width, "height": min(seen["height"], 12000), "scale": 1}
    options = {"captureBeyondViewport": True, "clip": clip}
    picture = chrome.execute_cdp_cmd("Page.captureScreenshot", options)["data"]
    (shots / f"{page.stem}-{width}-{scheme}.png").write_bytes(base64.b64decode(picture))
    if "measurements" in seen["sections"]:
        wrong += [f"filter: {line}" for line in filtered(chrome)]
    return wrong


def printed(chrome: webdriver.Chrome, page: Path, shots: Path) -> None:
    """A page as PDF, for a person to look at; Chromium sometimes fails to print."""
    chrome.get(page.resolve().as_uri())
    try:
        paper = chrome.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    except WebDriverException as error:
        print(f"{page.name}: not printed ({str(error.msg)[:120]})")
    else:
        (shots / f"{page.stem}.pdf").write_bytes(base64.b64decode(paper))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--shots", type=Path, default=Path("out"))
    arguments = parser.parse_args()
    arguments.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        chrome = browser(profile)
        if chrome is None:
            print("skipped: no chromium and chromedriver here (Debian: chromium, chromium-driver)")
            return 0
        found = {}
        try:
            for page, width, scheme in itertools.product(arguments.pages, WIDTHS, SCHEMES):
                found[page.name, width, scheme] = visit(chrome, page, width, scheme, arguments.shots)
            for page in arguments.pages:
                printed(chrome, page, arguments.shots)
        finally:
            chrome.quit()
    for key, wrong in found.items():
        print(*key, "ok" if not wrong else "FAIL")
        for line in wrong:
            print("   ", line)
    print(f"screenshots: {arguments.shots}")
    return int(any(found.values()))


if __name__ == "__main__":
    sys.exit(main())
