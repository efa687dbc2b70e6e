"""The page in a real browser: type, see, click, by mouse and by keyboard."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.unit.browsing import look, needs_browser, unreadable, until

pytestmark = needs_browser


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
    shot("search-sentence")
    # Highlights on: frames and words appear; off: they go.
    browser.find_element(By.CSS_SELECTOR, "label.toggle").click()
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".hits svg rect"))
    assert browser.find_elements(By.CSS_SELECTOR, ".words li") and hits(browser) == found
    shot("search-highlights")
    browser.find_element(By.NAME, "why").send_keys(Keys.SPACE)
    until(browser, lambda b: not b.find_elements(By.CSS_SELECTOR, ".hits svg"))
    # One run alone answers otherwise than both.
    scores = "return [...document.querySelectorAll('.hits .score')].map(i => i.textContent)"
    both = browser.execute_script(scores)
    browser.find_element(By.XPATH, "//label[normalize-space()='first']").click()
    until(browser, lambda b: "run=first" in b.current_url)
    browser.find_element(By.CSS_SELECTOR, "[name=run]:checked").send_keys(Keys.ARROW_RIGHT)
    until(browser, lambda b: "run=second" in b.current_url)
    until(browser, lambda b: b.find_element(By.ID, "results").get_attribute("aria-busy") == "false")
    assert browser.execute_script(scores) != both
    # An image, opened by keyboard: its sentences, others like it; one of these, by mouse.
    browser.find_element(By.CSS_SELECTOR, ".hits a").send_keys(Keys.ENTER)
    until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, ".chosen img"))
    assert browser.find_elements(By.CSS_SELECTOR, ".sentences li") and hits(browser)
    shot("search-image")
    first, beside = browser.current_url, hits(browser)[0].rpartition("/")[2]
    browser.find_element(By.CSS_SELECTOR, ".hits a").click()
    until(browser, lambda b: f"image={beside}" in b.current_url and b.current_url != first)
    assert browser.find_element(By.CSS_SELECTOR, ".chosen img").get_attribute("src").endswith(f"/photo/{beside}")
    browser.back()
    until(browser, lambda b: b.current_url == first)
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
        assert unreadable(browser) == []
        # Names that have nowhere to break stay in their places.
        long = "document.querySelectorAll('bdi').forEach(one => one.textContent = 'a'.repeat(200)); return document.documentElement.scrollWidth"
        assert browser.execute_script(long) <= width
        shot(f"search-{name}-{width}-{'dark' if dark else 'light'}")


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
