"""The page as a person meets it, in a headless Chromium: quiet, readable at every size, tables that answer."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import scfast
import scfast.report
from tests.report import browser
from tests.toy import BACKEND, toy_adata, toy_source

SIZES = [(1280, False), (1280, True), (390, False), (390, True)]
ROWS = "[...document.querySelectorAll('[data-table=rollout-table] tbody tr')]"


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    adata = toy_adata(40)
    scfast.tl.rollout(adata, toy_source(), groupby="type", null="untrained", backend=BACKEND)
    return scfast.report.write(adata, tmp_path_factory.mktemp("report") / "report.html", title="Toy cells")[0]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.find() is None:
        assert os.environ.get("SCFAST_TEST_BROWSER") != "1", (
            f"none of {', '.join(browser.NAMES)} is installed"
        )
        pytest.skip(f"no browser: install one of {', '.join(browser.NAMES)}")
    with browser.running(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_fits_is_quiet_and_asks_for_nothing(page, tab, width, dark, tmp_path):
    tab.open(page, width, dark=dark)
    assert tab.complaints() == []
    assert tab.requests() == [page.resolve().as_uri()]
    assert tab.value("document.documentElement.scrollWidth") == width
    assert tab.value("[...document.images].every(image => image.naturalWidth > 200)")
    (tmp_path / "page.png").write_bytes(tab.picture())
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"), dtype=float)
    assert pixels.shape[1] == width
    assert (pixels.mean() < 128) == dark or width == 1280  # figures lie on white paper
    assert (pixels[:40, :20].mean() < 128) == dark
    assert pixels.std() > 20


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(page, tab, dark):
    tab.open(page, 1280, dark=dark)
    contrast = """(() => {
      const parse = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const ground = (node) => {
        for (; node; node = node.parentElement) {
          const colour = parse(getComputedStyle(node).backgroundColor);
          if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
      };
      return Math.min(...[...document.querySelectorAll('p, td, th, dt, dd, h1, h2, h3, h4, li, a, button, summary')]
        .filter(node => node.innerText.trim() && node.offsetParent)
        .map(node => [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a))
        .map(([a, b]) => (a + .05) / (b + .05)));
    })()"""
    assert tab.value(contrast) >= 4.5  # level AA of the Web Content Accessibility Guidelines


def test_tables_are_sorted(page, tab):
    tab.open(page, 1280)
    head = "[...document.querySelectorAll('[data-table=rollout-table] thead th')][{}]"
    column = tab.value(f"{ROWS}[0] && [...document.querySelectorAll('[data-table=rollout-table] thead th')]"
                       ".findIndex(th => th.textContent === 'rank')")  # fmt: skip
    values = f"JSON.stringify({ROWS}.map(row => Number(row.cells[{column}].textContent.replace(',', ''))))"
    for direction, sign in (("descending", -1), ("ascending", 1)):
        tab.value(head.format(column) + ".querySelector('button').click()")
        assert tab.value(head.format(column) + ".getAttribute('aria-sort')") == direction
        shown = np.array(json.loads(tab.value(values)))
        assert (np.diff(sign * shown) >= 0).all()
        assert len(set(shown)) > 1
    assert tab.complaints() == []


def test_tables_are_searched_and_lengthened(page, tab):
    tab.open(page, 1280)
    search = (
        "(text => {{ const field = document.querySelector('[data-table=rollout-table] input');"
        " field.value = text; field.dispatchEvent(new Event('input')); }})({!r})"
    )
    before = tab.value(f"{ROWS}.length")
    more = "document.querySelector('[data-table=rollout-table] .more')"
    assert not tab.value(f"{more}.hidden")
    tab.value(f"{more}.click()")
    assert tab.value(f"{ROWS}.length") > before
    tab.value(search.format("g12 plasma"))
    found = tab.value(f"{ROWS}.map(row => row.textContent).join('|')").split("|")
    assert len(found) == 1
    assert "G12" in found[0]
    tab.value(search.format("nothing is called so"))
    assert tab.value(f"{ROWS}.length") == 0
    assert tab.value("document.querySelector('[data-table=rollout-table] .count').textContent").startswith(
        "0 of "
    )
    tab.value(search.format(""))
    assert tab.value(f"{ROWS}.length") > before
    assert tab.complaints() == []


def test_tables_are_downloaded_as_csv(page, tab):
    tab.open(page, 1280)
    tab.value("URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:none'; };"
              " HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; };"
              " [...document.querySelectorAll('[data-table=rollout-groups] .action')]"
              ".find(b => b.textContent === 'CSV').click()")  # fmt: skip
    assert tab.value("window.savedAs") == "rollout-groups.csv"
    lines = tab.value("window.saved.text()").splitlines()
    assert lines[0].startswith("group,cells,replicates,")
    assert len(lines) == 1 + 3


def test_numbers_look_alike_before_and_after_the_script(page, tab):
    tab.open(page, 1280)
    after = tab.value("document.querySelector('[data-table=rollout-table] tbody').innerText")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(page, 1280)
        node = tab.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        body = tab.call("DOM.querySelector", nodeId=node, selector="[data-table=rollout-table] tbody")[
            "nodeId"
        ]
        html = tab.call("DOM.getOuterHTML", nodeId=body)["outerHTML"]
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)
    before = re.sub(r"<[^>]+>", " ", html).split()
    assert before == after.split()
