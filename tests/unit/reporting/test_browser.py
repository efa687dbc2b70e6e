"""The report in a real browser, opened as a file: by mouse and by keyboard, on a desk and on a phone."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from model.explain import Explanation, cells
from reporting.artefacts import WHY_VERSION, Artefacts
from reporting.painted import pair
from reporting.report import build, render
from reporting.sections.gallery import find, matches
from reporting.why import _record
from tests.unit.browsing import look, needs_browser, unreadable, until

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tree, tmp_path_factory):
    """The report of a whole results folder, with explanations in its gallery; its address."""
    root, config = tree
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(root, folder / "results", ignore=shutil.ignore_patterns("images"))
    artefacts = Artefacts(folder / "results", config)
    told = {}
    for testset, settings in config["testsets"].items():
        found = find(artefacts, testset, settings, 2, 0)
        for (_, _, members), answers in zip(found.systems, found.answers, strict=True):
            for number, match in enumerate(matches(members[0], *answers)):
                shares = np.random.default_rng(number).normal(scale=0.02, size=(4, 3))
                words, places = ("a", "red", "dog"), cells(2, 2)
                one = Explanation(float(shares.sum()), words, ("region",) * 4, shares, np.zeros(4), places, None, None)
                for run in config["runs"]:
                    told.setdefault(testset, {}).setdefault(run, {})[pair(*match)] = _record(one)
    path = folder / "results" / "report" / "why.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"why_version": WHY_VERSION, "testsets": told}))
    path = path.with_name("index.html")
    path.write_text(render(build(Artefacts(folder / "results", config), queries=2, seed=0)))
    return path.as_uri()


def test_tables_sort_latex_is_copied_and_layers_switch(browser, page, shot):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    look(browser, 1280, dark=False)
    browser.get(page)

    def column(place):
        rows = browser.find_elements(
            By.CSS_SELECTOR, "#results table.results:first-of-type tbody:first-of-type tr:not(.below)"
        )
        return [row.find_elements(By.CSS_SELECTOR, "th, td")[place].text for row in rows][:3]

    def sums():
        return [float(re.match(r"[\d.]+", text).group()) for text in column(-1)]

    first = sums()
    head = browser.find_element(By.CSS_SELECTOR, "#results table.results th.sep[rowspan] button")
    head.click()
    assert sums() == sorted(first, reverse=True)
    head.send_keys(Keys.ENTER)
    assert sums() == sorted(first)
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    head.send_keys(Keys.SPACE)
    assert sums() == first, "a third time: as the configuration has them"
    shot("report-sorted")

    browser.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})
    copy = browser.find_element(By.CSS_SELECTOR, "#results button.copy")
    copy.click()
    until(browser, lambda _: copy.text == "Copied")
    copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    source = browser.find_element(By.CSS_SELECTOR, "#results .latex pre").get_attribute("textContent")
    assert copied.strip() == source.strip() and "tabular" in copied

    def shown(selector):
        seen = "return [...document.querySelectorAll(arguments[0])].filter(one => one.getClientRects().length)"
        return browser.execute_script(seen, selector)

    assert shown("#gallery .layer-boxes") and not shown("#gallery .layer-why")
    for layer in ("boxes", "why"):
        browser.find_element(By.ID, f"show-{layer}").send_keys(Keys.SPACE)
    assert shown("#gallery .layer-why") and not shown("#gallery .layer-boxes")
    # Point at a region: the words that it answers to.
    said = shown("#gallery .frame")[0].find_element(By.TAG_NAME, "title").get_attribute("textContent")
    assert re.match(r"[+-]0\.\d{3}: (a|red|dog) [+-]", said)
    browser.execute_script("document.getElementById('gallery').scrollIntoView()")
    shot("report-why")
    # Another system's answers, by mouse and by arrow key.
    (before,) = (one.get_attribute("class") for one in shown(".panel")[:1])
    gallery = browser.find_element(By.CLASS_NAME, "gallery")
    label = next(one for one in gallery.find_elements(By.TAG_NAME, "label") if one.get_attribute("for") not in before)
    label.click()
    chosen = label.get_attribute("for")
    assert chosen in shown(".panel")[0].get_attribute("class")
    browser.find_element(By.ID, chosen).send_keys(Keys.ARROW_RIGHT)
    assert chosen not in shown(".panel")[0].get_attribute("class") and len(shown(".panel")) == 2, "one a test set"
    assert not [entry["message"] for entry in browser.get_log("browser")]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_the_screen_in_both_colours(browser, page, shot, width, dark):
    look(browser, width, dark=dark)
    browser.get(page)
    wide, inner = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner == width
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    light = sum(int(v) for v in re.findall(r"\d+", background)[:3]) / 3
    assert light < 60 if dark else light > 200
    for section in ("results", "gallery", "failures", "training"):
        browser.execute_script("document.getElementById(arguments[0]).scrollIntoView({behavior: 'instant'})", section)
        shot(f"report-{section}-{width}-{'dark' if dark else 'light'}")
    # With all that is folded, names that have nowhere to break, and a single mistake no wider than one of many.
    browser.execute_script("""
        document.querySelectorAll("details").forEach(one => one.open = true);
        document.getElementById("show-why").checked = true;
        document.querySelectorAll("bdi").forEach(one => one.textContent = "a".repeat(200));
        document.querySelectorAll("#failures .images > :not(:first-child)").forEach(one => one.remove());
    """)
    wide, names, mistake = browser.execute_script("""
        const mistake = document.querySelector("#failures .images");
        return [document.documentElement.scrollWidth, document.querySelectorAll("bdi").length,
            mistake.firstElementChild.offsetWidth / mistake.offsetWidth];
    """)
    assert wide <= width and names and (mistake < 0.6 or width == 390)
    assert unreadable(browser) == []
