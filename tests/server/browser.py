"""The web page in headless Chromium, as a person meets it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

T = TypeVar("T")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
)


class Page:
    """An open page.

    Args:
        url: of the server.
    """

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        self.url = url
        self._requests: list[str] = []

    def one(self, selector: str) -> WebElement:
        """The first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements, in order."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """What all elements say, read at once: what is drawn anew meanwhile is no trouble."""
        read = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        found: list[str] = self.driver.execute_script(read, selector)
        return found

    def choose(self, selector: str, text: str) -> None:
        """Click the one with this text."""
        [found] = [element for element in self.all(selector) if element.text == text]
        found.click()

    def fill(self, selector: str, text: str) -> None:
        """Write this into a field."""
        field = self.one(selector)
        field.clear()
        field.send_keys(text)

    def wait(self, what: Callable[[], T], seconds: float = 30.0) -> T:
        """The first true value of `what`."""
        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: what())

    def ask(self, question: str) -> None:
        """Send a message of the chat."""
        self.one("#question").send_keys(question + Keys.ENTER)

    def counts(self, turn: int = -1) -> dict[str, str]:
        """What stands below an answer, once it is over."""
        before = len(self.all(".turn.assistant")) if turn < 0 else turn + 1
        self.wait(lambda: len(self.all("#turns .counts")) >= before)
        pairs = self.all("#turns .counts")[turn].find_elements(By.CSS_SELECTOR, "div")
        return {
            pair.find_element(By.CSS_SELECTOR, "dt").text: (
                pair.find_element(By.CSS_SELECTOR, "dd").text
            )
            for pair in pairs
        }

    def complaints(self) -> list[str]:
        """What the console has said."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Where requests of the page went."""
        self._read_requests()
        parts = [urlsplit(address) for address in self._requests]
        return {f"{part.scheme}://{part.netloc}" for part in parts}

    def polls(self) -> int:
        """How often the dashboard has asked since the last call."""
        before = len(self._requests)
        self._read_requests()
        return sum(address.endswith("/v1/overview") for address in self._requests[before:])

    def fact(self, selector: str, term: str) -> str:
        """The value beside a term of a list."""
        for pair in self.texts(f"{selector} dl div"):
            name, _, value = pair.partition("\n")
            if name == term:
                return value
        raise AssertionError(f"{selector} tells no {term!r}")

    def _read_requests(self) -> None:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])

    def size(self, width: int, height: int, theme: str = "light") -> None:
        """Show it at this size, in this theme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def open_page(url: str) -> Iterator[Page]:
    """A browser of its own with the page in it."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
    driver = webdriver.Chrome(options=options, service=service)
    try:
        page = Page(driver, url)
        page.size(1400, 900)
        driver.get(url)
        page.wait(lambda: page.one("#model").text or page.one("#notice").text)
        yield page
    finally:
        driver.quit()
