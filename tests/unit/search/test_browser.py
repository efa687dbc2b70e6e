"""The page in a real browser: type, see, click. A picture of each step is kept where THREESHNET_SCREENSHOTS says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"
)


@pytest.fixture(scope="module")
def address(built, repository):
    """The command itself, at a free port."""
    command = [sys.executable, "-m", "search", "serve", "--dataset", "mine", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--results", str(built.results)], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    found = re.match(r"(http://127\.0\.0\.1:\d+/)", line)
    assert found, line
    yield found.group(1)
    process.terminate()
    assert process.wait(20) is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def shot(browser, tmp_path):
    folder = Path(os.environ.get("THREESHNET_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: browser.save_screenshot(str(folder / f"search-{name}.png"))


def look(browser, width: int, *, dark: bool) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def until(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(condition)


def hits(browser) -> list:
    return browser.execute_script("return [...document.querySelectorAll('.hits img')].map(i => i.getAttribute('src'))")


def test_type_see_click_and_go_back(browser, address, shot):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    look(browser, 1280, dark=False)
    browser.get(address)
    first = hits(browser)
    # By keyboard alone: a slash leads into the box, results come while typing.
    browser.execute_script("document.activeElement.blur()")
    ActionChains(browser).send_keys("/").perform()
    box = browser.switch_to.active_element
    assert box.get_attribute("name") == "q"
    box.send_keys("a green bird")
    until(browser, lambda b: "green bird" in b.find_element(By.ID, "results").text)
    found = hits(browser)
    assert found != first and "q=a+green+bird" in browser.current_url
    assert all(browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 0)"))
    shot("sentence")
    # Highlights on: frames and words appear; off: they go.
    browser.execute_script("document.querySelector('[name=why]').click()")
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".hits svg rect"))
    assert browser.find_elements(By.CSS_SELECTOR, ".words li") and hits(browser) == found
    shot("highlights")
    browser.execute_script("document.querySelector('[name=why]').click()")
    until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, ".hits svg"))
    # One run alone answers otherwise than both.
    browser.execute_script("document.querySelector('[name=run][value=second]').click()")
    until(browser, lambda b: "run=second" in b.current_url)
    # An image, opened by keyboard: its sentences, others like it.
    until(browser, lambda b: b.find_element(By.ID, "results").get_attribute("aria-busy") == "false")
    browser.find_element(By.CSS_SELECTOR, ".hits a").send_keys(Keys.ENTER)
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".chosen img"))
    assert browser.find_elements(By.CSS_SELECTOR, ".sentences li") and hits(browser)
    shot("image")
    browser.back()
    until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, ".chosen"))
    assert browser.find_element(By.ID, "q").get_attribute("value") == "a green bird"
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert not messages, "the page's own policy must allow all that it does"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_the_screen_in_both_colours(browser, address, shot, width, dark):
    look(browser, width, dark=dark)
    for name, query in (("words", "?q=a+red+car&why=1&top=6"), ("chosen", "?image=0&top=4")):
        browser.get(address + query)
        wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inner == width
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        light = sum(int(v) for v in re.findall(r"\d+", background)[:3]) / 3
        assert light < 60 if dark else light > 200
        assert not browser.execute_script("return [...document.images].filter(i => !i.alt).length")
        shot(f"{name}-{width}-{'dark' if dark else 'light'}")


def test_it_works_without_scripts(browser, address):
    from selenium.webdriver.common.by import By

    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(address)
        browser.find_element(By.NAME, "q").send_keys("a white boat")
        browser.find_element(By.CSS_SELECTOR, "form button").click()
        until(browser, lambda b: "q=a+white+boat" in b.current_url)
        assert browser.find_elements(By.CSS_SELECTOR, ".hits img")
        browser.find_element(By.CSS_SELECTOR, ".hits a").click()
        until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".chosen"))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
