"""A headless Chromium for tests of pages; nothing is downloaded, and without it the tests skip, or fail where
VIDEOSSL_NEED_BROWSER=1 says that it is there.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900")


@contextmanager
def browser() -> Iterator[Any]:
    """A driver; skips where chromium or chromedriver is missing, and fails if it must not."""
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        give_up = pytest.fail if os.environ.get("VIDEOSSL_NEED_BROWSER") == "1" else pytest.skip
        give_up("chromium and chromedriver are not installed (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: Any, page: Path, *, width: int, height: int = 900) -> None:
    """Shows a file at this width, in CSS pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.resolve().as_uri())


def wait_for(driver: Any, script: str, *, seconds: float = 20) -> Any:
    """The first true answer of a script."""
    return WebDriverWait(driver, seconds).until(lambda d: d.execute_script(f"return {script}"))


def assert_fits(driver: Any) -> None:
    """Nothing may stick out to the right of the window."""
    needed, there = driver.execute_script(
        "return [document.scrollingElement.scrollWidth, innerWidth]"
    )
    assert needed <= there


def assert_silent(driver: Any) -> None:
    """No error, no warning, no failed request so far."""
    assert driver.get_log("browser") == []
