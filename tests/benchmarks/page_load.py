"""Size of a page, time until it can be used, and how long a hover and a step of the slider take.

    python tests/benchmarks/page_load.py --layers 12 --heads 12 --regions 36 --words 22

makes the page of random scores of that size, opens it in the system's Chromium several times, and prints
medians: the file in MB; milliseconds from the start of loading until the page is drawn and answers; and
milliseconds from an event to the end of the frame that shows what it changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

from tbkin_core.figures.page import write_page
from tbkin_core.figures.trace import Pass, Trace

_FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
# From an event to the end of the frame that shows what it changed, in milliseconds.
_TIMED = """async ([selector, event, value]) => {
  const node = document.querySelector(selector);
  if (value !== null) node.value = value;
  const start = performance.now();
  node.dispatchEvent(new PointerEvent(event, { bubbles: true, pointerType: "mouse" }));
  const handled = performance.now() - start;
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [handled, performance.now() - start];
}"""
# The page marks the end of its own start; layout and painting follow in the next frame.
_READY = """async () => {
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const { domInteractive } = performance.getEntriesByType("navigation")[0];
  return [domInteractive, performance.now()];
}"""


def drawn(layers: int, heads: int, regions: int, words: int) -> Trace:
    """A trace of random scores over a noisy photograph-sized image."""
    chance = np.random.default_rng(0)
    length = regions + words + 2
    scores = (1.5 * chance.standard_normal((layers, heads, length, length))).astype(np.float16)
    kept = scores >= scores.max(axis=-1, keepdims=True) + np.log(0.3)
    width, height = 640, 480
    corners = np.sort(chance.random((regions, 2, 2)), axis=1) * np.array([width, height])
    coarse = chance.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    names = [f"word{number}" for number in range(words)]
    answers = [("yes", 0.6), ("no", 0.4)]
    return Trace(
        task="vqa",
        text=" ".join(names),
        image=coarse.repeat(8, axis=0).repeat(8, axis=1),
        image_size=(width, height),
        boxes=corners.reshape(regions, 4).astype(np.float32),
        region_labels=[f"thing {number}" for number in range(regions)],
        words=names,
        pieces=["[CLS]", *names, "[SEP]"],
        word_ids=np.array([-1, *range(words), -1]),
        selection="relative",
        threshold=0.3,
        dense=Pass(scores, np.ones_like(kept), answers=answers),
        thresholded=Pass(scores, kept, answers=answers),
    )


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("layers", 12), ("heads", 12), ("regions", 36), ("words", 22), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        parser.error("no Chromium is installed")
    trace = drawn(arguments.layers, arguments.heads, arguments.regions, arguments.words)
    loads, hovers, steps = [], [], []
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        file = Path(place) / "page.html"
        write_page(file, trace)
        with playwright.chromium.launch_persistent_context(
            Path(place) / "profile", executable_path=program, args=_FLAGS.split()
        ) as context:
            page = context.pages[0]
            page.set_viewport_size({"width": 1280, "height": 900})
            for number in range(arguments.rounds + 1):
                page.goto(file.as_uri())
                page.wait_for_selector("html[data-ready]", state="attached")
                load = page.evaluate(_READY)
                words = f".word:nth-child({2 + number % arguments.words})"
                hover = page.evaluate(_TIMED, [words, "pointerenter", None])
                step = page.evaluate(_TIMED, ["#tau", "input", str(0.2 + 0.05 * number)])
                if number:  # the first warms up
                    loads.append(load)
                    hovers.append(hover)
                    steps.append(step)
        megabytes = file.stat().st_size / 1e6
    shape = "x".join(map(str, trace.dense.scores.shape))
    print(f"scores {shape}, {megabytes:.2f} MB, load average {os.getloadavg()[0]:.1f}")

    def median(pairs: list[list[float]], which: int) -> float:
        return statistics.median(pair[which] for pair in pairs)

    print(f"load:   {median(loads, 0):6.0f} ms until parsed and run, {median(loads, 1):6.0f} ms until drawn")
    print(f"hover:  {median(hovers, 0):6.1f} ms to handle, {median(hovers, 1):6.1f} ms until drawn")
    print(f"slider:                  {median(steps, 1):6.1f} ms until drawn")


if __name__ == "__main__":
    main()
