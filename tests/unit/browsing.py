"""Looking at pages in a real browser. Pictures of each step are kept where THREESHNET_SCREENSHOTS says."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"
)


def start():
    """A browser without a window; whoever starts it quits it."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    return driver


def look(browser, width: int, *, dark: bool) -> None:
    """Make the page `width` pixels wide, in light or dark colours."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(browser, condition):
    """What a condition gives once it holds."""
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    # The page may replace what the condition looks at while it looks.
    return WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException]).until(condition)


def unreadable(browser) -> list[str]:
    """Texts that are seen with a contrast below 4.5 to what is behind them (WCAG 2.1, AA), each as its tag, class and contrast."""
    return browser.execute_script(_UNREADABLE)


_UNREADABLE = """
const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function colour(said) {
  paint.clearRect(0, 0, 1, 1); paint.fillStyle = said; paint.fillRect(0, 0, 1, 1);
  const [r, g, b, alpha] = paint.getImageData(0, 0, 1, 1).data;
  return {rgb: [r, g, b], alpha: alpha / 255};
}
const over = (top, alpha, below) => below.map((value, i) => value * (1 - alpha) + top[i] * alpha);
const luminance = rgb => rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const above = element => element ? [element, ...above(element.parentElement)] : [];
const found = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement, style = getComputedStyle(element);
  if (!texts.currentNode.textContent.trim() || !element.getClientRects().length || element.closest("script, style, title, .sr, .skip"))
    continue;
  let behind = [255, 255, 255], opacity = 1;
  for (const one of above(element).reverse()) {
    const own = getComputedStyle(one), background = colour(own.backgroundColor);
    behind = over(background.rgb, background.alpha, behind);
    opacity *= own.opacity;
  }
  const ink = colour(element instanceof SVGElement ? style.fill : style.color);
  const [dark, light] = [luminance(behind), luminance(over(ink.rgb, ink.alpha * opacity, behind))].sort((a, b) => a - b);
  const contrast = (light + .05) / (dark + .05);
  if (contrast < 4.5) found.add(`${element.tagName}.${element.getAttribute("class")} ${contrast.toFixed(2)}`);
}
return [...found];
"""
