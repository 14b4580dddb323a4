"""The page of a trace in a real browser: what it shows is what Python computes, by mouse and by keyboard."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from matplotlib.text import Text
from numpy.typing import NDArray
from playwright.sync_api import Page, expect
from test_rule_drift import KEPT_IN_PAGE, cases, compare
from tiny_traces import tiny_trace

from tbkin_core.errors import DataError
from tbkin_core.figures import page as page_module
from tbkin_core.figures.answer import trace_figure
from tbkin_core.figures.page import write_page
from tbkin_core.figures.trace import Pass, Trace
from tbkin_core.figures.views import attention_views, rollout
from tbkin_core.modeling import Selection
from tbkin_core.modeling.attention import scope_mask, select_keys
from tbkin_core.selection import RULE_TABLE, Rule
from tbkin_core.selection import RULES as NAMES
from tbkin_core.support.console import OBEYED

# One worker owns the browser.
pytestmark = pytest.mark.xdist_group("browser")

RULES = [
    ("relative", 0.3), ("relative", 0.0), ("relative", 0.123), ("relative", 1.0), ("probability", 0.1),
    ("probability", 0.5), ("score", 0.4), ("score", 0.0), ("topk", 3), ("topk", 0), ("topk", 1000),
]  # fmt: skip
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1">&amp;{{trace}}'


Show = Callable[..., Page]


@pytest.fixture
def show(tab: Page, tmp_path: Path) -> Iterator[Show]:
    """Opens the page of a trace; in the end, no page may have complained or asked for anything but itself."""
    paths: list[Path] = []
    complaints: list[str] = []
    requests: list[str] = []
    listeners: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: complaints.append(message.text),
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda request: requests.append(request.url),
    }
    for event, listener in listeners.items():
        tab.on(event, listener)

    def opened(
        trace: Trace,
        width: int = 1280,
        height: int = 900,
        color_scheme: Any = "light",
        reduced_motion: Any = "reduce",
        **choice: Any,
    ) -> Page:
        paths.append(tmp_path / f"page {len(paths)}.html")
        write_page(paths[-1], trace, **choice)
        tab.mouse.move(0, 0)
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(color_scheme=color_scheme, reduced_motion=reduced_motion)
        tab.goto(paths[-1].as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        return tab

    yield opened
    tab.goto("about:blank")
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    assert not complaints
    requests = [url for url in requests if not url.startswith(("data:", "about:"))]
    assert requests == [path.as_uri() for path in paths]


def kept_by(trace: Trace, rule: str, threshold: float) -> NDArray[np.bool_]:
    """(N, H, L, L) as the model itself selects, layer by layer, on the dense scores."""
    scores = torch.from_numpy(trace.dense.scores.astype(np.float32))
    scope = scope_mask(trace.scope, len(trace.pieces), scores.shape[-1])
    kept = select_keys(scores, rule, threshold, scope)
    for layer in range(len(scores)):
        if trace.layers is not None and layer not in trace.layers:
            kept[layer] = scores[layer] > -torch.inf
    return kept.numpy()


def by_direction(trace: Trace, kept: NDArray[np.bool_]) -> dict[str, tuple[int, int]]:
    text = len(trace.pieces)
    parts = {
        "all": kept,
        "text-to-text": kept[..., :text, :text],
        "text-to-image": kept[..., :text, text:],
        "image-to-text": kept[..., text:, :text],
        "image-to-image": kept[..., text:, text:],
    }
    return {name: (int(part.sum()), part.size) for name, part in parts.items()}


def shown_counts(page: Page, column: str) -> dict[str, tuple[int, int]]:
    cells = page.eval_on_selector_all(
        f"#kept td[data-column={column}]",
        "cells => cells.map(({ parentNode, dataset }) =>"
        " [parentNode.dataset.direction, +dataset.kept, +dataset.total])",
    )
    return {name: (kept, total) for name, kept, total in cells}


def choose(page: Page, rule: str, threshold: float) -> None:
    page.select_option("#rule", rule)
    page.fill("#tau-exact", str(threshold))
    page.press("#tau-exact", "Tab")
    settle(page)


def settle(page: Page) -> None:
    """The page computes in the next frame."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def shown_weights(page: Page, kind: str) -> NDArray[np.float64]:
    return np.array(
        page.eval_on_selector_all(kind, "nodes => nodes.map(node => Number(node.dataset.weight))")
    )


REGIONS, WORDS = "#regions .region", "#words .word:not(.answer)"


def word(page: Page, number: int) -> Any:
    return page.locator(WORDS).nth(number)


def weights(trace: Trace, rule: str | None = None, threshold: float = 0.0) -> NDArray[np.float32]:
    """(N, H, L, L) of the thresholded pass, shown at first; or of the dense scores under a rule."""
    if rule is None:
        return trace.thresholded.weights()
    return Pass(trace.dense.scores, kept_by(trace, rule, threshold)).weights()


def word_region(trace: Trace, attention: NDArray[np.float64]) -> NDArray[np.float64]:
    """(W, K) of (L, L)."""
    text = len(trace.pieces)
    rows = [attention[:text][trace.word_ids == number].mean(axis=0) for number in range(len(trace.words))]
    return np.stack(rows)[:, text:]


# ---- the page and the figure --------------------------------------------------------------------


@pytest.fixture
def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the figures that a test draws."""
    texts: list[str] = []
    draw = Text.draw

    def remember(text: Text, *arguments: Any, **options: Any) -> None:
        texts.append(text.get_text())
        draw(text, *arguments, **options)

    monkeypatch.setattr(Text, "draw", remember)
    return texts


SAME: dict[str, tuple[Callable[[], Trace], dict[str, Any]]] = {
    "vqa": (tiny_trace, {}),
    "rec": (lambda: tiny_trace("the large dog", task="rec"), {}),
    "rollout": (tiny_trace, {"aggregate": "rollout"}),
    "last": (lambda: tiny_trace("the large dog", task="rec"), {"aggregate": "last"}),
    "layer": (lambda: tiny_trace(layers=3), {"layer": 1}),
    "head": (lambda: tiny_trace("the large dog", task="rec"), {"head": 1}),
    "one layer selects": (lambda: tiny_trace(selection=Selection("topk", 4, layers=(0,))), {}),
    "one direction": (lambda: tiny_trace(selection=Selection("score", 0.2, scope="text-to-image")), {}),
    "entmax15": (lambda: without_scores(tiny_trace(selection=Selection("entmax15", 1.0))), {}),
    "dense": (lambda: tiny_trace(selection=Selection("relative", 0.0)), {}),
}


def without_scores(trace: Trace) -> Trace:
    """A trace of a transform, whose weights are no softmax and stand in it, as `tbkin visualize` makes it."""
    kept = trace.thresholded.kept
    attention = np.where(kept, np.random.default_rng(0).random(kept.shape), 0).astype(np.float32)
    attention /= attention.sum(axis=-1, keepdims=True)
    return replace(trace, thresholded=replace(trace.thresholded, attention=attention.astype(np.float16)))


@pytest.mark.parametrize("case", SAME)
def test_the_page_shows_what_the_figure_shows(
    case: str, show: Show, tmp_path: Path, drawn_texts: list[str]
) -> None:
    make, choice = SAME[case]
    trace = make()
    trace_figure(tmp_path / "figure.png", trace, **choice)
    page = show(trace, **choice)
    columns = [" ".join(text.split()) for text in page.locator("#answers thead th").all_text_contents()]
    assert columns[1] == "dense"
    if trace.threshold:
        assert f"({columns[2]})" in "".join(drawn_texts), "the passes are called alike"
    for pass_, view in zip(("thresholded", "dense"), reversed(attention_views(trace, **choice)), strict=True):
        if pass_ == "dense":
            if case == "entmax15":
                page.select_option("#rule", "relative")
            page.fill("#tau-exact", "0")
            settle(page)
        assert shown_weights(page, REGIONS) == pytest.approx(view.region_weights, abs=2e-4)
        assert shown_weights(page, WORDS) == pytest.approx(view.word_weights, abs=2e-4)
        cells = page.locator("#map td[data-word] .unseen").all_text_contents()
        dropped = [text == "dropped" for text in cells]
        assert dropped == (view.word_region == 0).flatten().tolist()
        # The share on regions, in the same digits.
        sentence = (page.text_content("#shown") or "").replace("\xa0", " ")
        share = f"{100 * view.region_weights.sum():.3g} %"
        said = "none" if share == "0 %" else share
        assert f"{said} of its attention is on regions" in sentence
        assert f"{share} on regions" in drawn_texts
        which = "the model’s own " + (
            "dense pass" if pass_ == "dense" or not trace.threshold else "pass with "
        )
        expect(page.locator("#independent")).to_contain_text(which)
    page.fill("#tau-exact", "0.9")
    settle(page)
    expect(page.locator("#independent")).to_contain_text("Recomputed here from the scores of the dense pass")
    expect(page.locator("#answers-note")).to_contain_text("these do not follow the slider")
    page.click("#own")
    own = attention_views(trace, **choice)[1]
    assert shown_weights(page, REGIONS) == pytest.approx(own.region_weights, abs=2e-4)
    expect(page.locator("#own")).to_be_hidden()


def test_moving_the_threshold_is_not_what_the_model_does_with_it() -> None:
    trace = tiny_trace()
    moved = weights(trace, trace.selection, trace.threshold)
    assert abs(moved - trace.thresholded.weights()).max() > 0.01, "or the tests above compare nothing"


def test_boxes_are_called_alike_in_page_and_figure(
    show: Show, tmp_path: Path, drawn_texts: list[str]
) -> None:
    trace = tiny_trace("the large dog", task="rec")
    trace_figure(tmp_path / "figure.png", trace)
    page = show(trace)
    legend = {text.partition(":")[0].partition(",")[0] for text in drawn_texts}
    named = page.locator("#grounding tbody th").all_text_contents()
    assert named == ["chosen region", "runner-up", "predicted box", "target"]
    assert set(named) <= legend
    tags = {
        text.partition(":")[0] for text in page.locator("#region-names .tag[class*=' ']").all_text_contents()
    }
    assert tags & set(named) and not tags - set(named) - {regions_named(trace, text) for text in tags}
    answers = page.locator("#answers tbody th").all_text_contents()
    assert set(answers) <= set(drawn_texts), "regions too"


def regions_named(trace: Trace, text: str) -> str:
    """The text, where it is a region's name."""
    names = {f"{number} {label}".strip() for number, label in enumerate(trace.region_labels)}
    return text if text in names else ""


# ---- the threshold ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    [
        Selection("relative", 0.3),
        Selection("topk", 4, layers=(1,)),
        Selection("probability", 0.2, scope="text-to-image"),
        Selection("score", 0.5, scope="cross-modal"),
    ],
    ids=lambda selection: f"{selection.rule}-{selection.scope}-{selection.layers}",
)
def test_kept_counts_are_those_of_the_model_under_every_rule(selection: Selection, show: Show) -> None:
    trace = tiny_trace(regions=6, selection=selection)
    page = show(trace)
    own = by_direction(trace, trace.thresholded.kept)
    assert shown_counts(page, "all") == shown_counts(page, "run") == own
    assert own["all"][0] < own["all"][1]
    for rule, threshold in RULES if selection.rule == "relative" else RULES[::2]:
        choose(page, rule, threshold)
        is_own = (rule, threshold) == (selection.rule, selection.threshold)
        expected = trace.thresholded.kept if is_own else kept_by(trace, rule, threshold)
        assert shown_counts(page, "all") == by_direction(trace, expected), (rule, threshold)
        assert shown_counts(page, "shown") == by_direction(trace, expected[-1]), (rule, threshold)
        share = expected.mean()
        text = page.text_content("#kept tr[data-direction=all] td[data-column=all]") or ""
        assert float(text.replace("\xa0", " ").split(" ")[0]) == pytest.approx(100 * share, rel=0.005)
    choose(page, "topk", 2)
    page.select_option("#layer", index=0)
    page.select_option("#head", index=2)  # the first option is the mean
    expected = kept_by(trace, "topk", 2)
    assert shown_counts(page, "shown") == by_direction(trace, expected[0, 1])
    links = page.text_content("#survive") or ""
    alive = word_region(trace, expected[0, 1].astype(np.float64)) > 0
    assert links.startswith(f"{alive.sum()} of {alive.size} links from words to regions survive")


def test_the_slider_moves_by_the_arrow_keys_and_links_go(show: Show) -> None:
    trace = tiny_trace()
    page = show(trace)
    page.focus("#tau")
    dropped = [page.locator("#map td.dropped").count()]
    for step in range(1, 4):
        page.keyboard.press("ArrowRight")
        settle(page)
        assert page.input_value("#tau-exact") == f"{0.3 + 0.01 * step:.2f}"
        assert shown_counts(page, "all") == by_direction(trace, kept_by(trace, "relative", 0.3 + 0.01 * step))
    page.keyboard.press("End")
    settle(page)
    assert page.input_value("#tau") == "1"
    dropped.append(page.locator("#map td.dropped").count())
    page.keyboard.press("Home")
    settle(page)
    dropped.append(page.locator("#map td.dropped").count())
    assert dropped[1] > dropped[0] > dropped[2] == 0
    assert "relative, τ = 0: 100\xa0% kept" in (page.get_attribute("#tau", "aria-valuetext") or "")
    # Each rule keeps its own threshold.
    page.select_option("#rule", "topk")
    assert page.input_value("#tau-exact") == "4"
    page.select_option("#rule", "relative")
    assert page.input_value("#tau-exact") == "0"


def test_nothing_typed_breaks_the_threshold(show: Show) -> None:
    trace = tiny_trace()
    page = show(trace)
    for typed, meant in (("7", 1.0), ("-1", 0.0), ("", 0.0)):
        page.fill("#tau-exact", typed)
        page.press("#tau-exact", "Tab")
        settle(page)
        assert float(page.input_value("#tau-exact")) == meant
        assert shown_counts(page, "all") == by_direction(trace, kept_by(trace, "relative", meant))
    choose(page, "topk", 2.6)
    assert page.input_value("#tau-exact") == "3"
    assert shown_counts(page, "all") == by_direction(trace, kept_by(trace, "topk", 3))


def test_the_page_has_the_rules_of_the_table_with_their_usual_thresholds(show: Show) -> None:
    page = show(tiny_trace(selection=Selection("relative", 0.45)))
    assert tuple(page.locator("#rule option").all_text_contents()) == NAMES
    for name in NAMES:
        page.select_option("#rule", name)
        usual = 0.45 if name == "relative" else RULE_TABLE[name].usual
        assert float(page.input_value("#tau-exact")) == usual
        assert page.text_content("#tau-name") == RULE_TABLE[name].symbol
        assert RULE_TABLE[name].keeps in (page.text_content("#rule-note") or "")


@pytest.mark.parametrize("rule", NAMES)
def test_the_script_in_the_page_keeps_what_the_model_keeps(rule: str, show: Show) -> None:
    page = show(tiny_trace())

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=cases(rule))
    def compared(case: dict[str, Any]) -> None:
        compare(case, page.evaluate(KEPT_IN_PAGE, case))

    compared()


@pytest.mark.parametrize("where", ["table", "trace"])
def test_a_rule_that_the_page_does_not_know_is_an_error_not_another_rule(
    where: str, tab: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tiny_trace()
    if where == "table":
        monkeypatch.setattr(page_module, "RULE_TABLE", RULE_TABLE | {"nearest": Rule("nearest")})
    else:
        trace = replace(trace, selection="nearest")
    write_page(tmp_path / "page.html", trace)
    tab.goto((tmp_path / "page.html").as_uri())
    expect(tab.locator("#problem")).to_have_text("This page knows no selection rule “nearest”.")
    expect(tab.locator("main")).to_be_hidden()
    with pytest.raises(Exception, match="knows no selection rule “nearest”"):
        tab.evaluate("attention.select('nearest', 0.3)")


# ---- pointing, pinning, the keyboard ------------------------------------------------------------


def test_a_word_lights_up_its_regions_and_a_region_its_words(show: Show) -> None:
    trace = tiny_trace()
    page = show(trace)
    attention = weights(trace)[-1].mean(axis=0)
    text = len(trace.pieces)
    # At first the answer's view: what [CLS] attends to.
    assert shown_weights(page, REGIONS) == pytest.approx(attention[0, text:], abs=1e-5)
    expect(page.locator("#shown")).to_contain_text("read from [CLS]")
    links = word_region(trace, attention)
    for number in (0, 3):  # the first consists of two pieces
        word(page, number).hover()
        assert shown_weights(page, REGIONS) == pytest.approx(links[number], abs=1e-5)
        expect(page.locator("#shown")).to_contain_text(f"“{trace.words[number]}” attends to")
        lit = page.eval_on_selector_all(REGIONS, "nodes => nodes.map(node => node.matches('.lit'))")
        assert lit == (links[number] > 0).tolist()
        assert page.locator("#links path").count() == (links[number] > 0).sum()
        # The most attended region is the brightest.
        holes = page.eval_on_selector_all(
            "#holes rect", "rects => rects.slice(1).map(r => +r.getAttribute('fill-opacity'))"
        )
        assert np.argmax(holes) == links[number].argmax() and max(holes) == 1
    page.locator(REGIONS).nth(2).dispatch_event("pointerenter", {"pointerType": "mouse"})
    assert shown_weights(page, WORDS) == pytest.approx(links[:, 2], abs=1e-5)
    expect(page.locator("#shown")).to_contain_text("Region 2 is attended to by")
    # The other way round: what regions attend to.
    page.select_option("#direction", "image")
    word(page, 0).hover()
    own = attention[text:, :text][:, trace.word_ids == 0].sum(axis=1)
    assert shown_weights(page, REGIONS) == pytest.approx(own, abs=1e-5)
    page.mouse.move(1, 1)
    expect(page.locator("#shown")).to_contain_text("read from [CLS]")


def test_a_click_pins_and_escape_lets_go(show: Show) -> None:
    page = show(tiny_trace())
    shown = page.locator("#shown")
    word(page, 1).click()
    page.mouse.move(1, 1)
    expect(shown).to_contain_text("“color”")
    expect(word(page, 1)).to_have_attribute("aria-pressed", "true")
    word(page, 2).hover()  # what is pointed at goes before what is pinned
    expect(shown).to_contain_text("“is”")
    page.mouse.move(1, 1)
    expect(shown).to_contain_text("“color”")
    page.keyboard.press("Escape")
    expect(shown).to_contain_text("read from [CLS]")
    expect(word(page, 1)).to_have_attribute("aria-pressed", "false")
    word(page, 1).click()
    word(page, 1).click()  # again: lets go
    page.mouse.move(1, 1)
    expect(shown).to_contain_text("read from [CLS]")


def test_all_of_it_goes_by_the_keyboard(show: Show) -> None:
    trace = tiny_trace()
    page = show(trace)
    shown = page.locator("#shown")
    order = []
    for _ in range(3 + len(trace.words)):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.firstChild?.textContent"))
    assert order[1:-1] == ["answer [CLS]", *trace.words]
    # All regions are one stop; the arrow keys go from one to the next, and round.
    expect(shown).to_contain_text("Region 0 dog")
    assert page.evaluate("getComputedStyle(document.activeElement).borderTopWidth") == "3px"
    page.keyboard.press("ArrowRight")
    expect(shown).to_contain_text("Region 1 tall building")
    page.keyboard.press("End")
    expect(shown).to_contain_text("Region 4 dog")
    page.keyboard.press("ArrowDown")
    expect(shown).to_contain_text("Region 0 dog")
    page.keyboard.press("Shift+Tab")
    expect(shown).to_contain_text("“?”")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Shift+Tab")
    for key in ("Enter", "Space"):
        page.keyboard.press(key)
        expect(page.locator(".word[aria-pressed=true]")).to_have_count(1)
        page.keyboard.press("Tab")
        expect(shown).to_contain_text("“?”")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")  # beyond the regions: what is pinned comes back
        assert page.evaluate("document.activeElement.id") == "rule"
        expect(shown).to_contain_text("“umbrella”")
        page.keyboard.press("Escape")
        expect(page.locator(".word[aria-pressed=true]")).to_have_count(0)
        for _ in range(3):
            page.keyboard.press("Shift+Tab")


def test_every_control_has_a_name(show: Show) -> None:
    page = show(tiny_trace())
    assert "image" in (page.get_attribute("#image", "alt") or "").lower()
    for node in page.locator("button, input, select, [role=group], [role=region], [role=img]").all():
        name = node.evaluate("node => node.ariaLabel || node.labels?.[0]?.textContent || node.textContent")
        assert name.strip(), node.evaluate("node => node.outerHTML")
    assert page.get_attribute("#shown", "aria-live") == "polite"


def test_a_cell_of_the_map_says_its_word_and_region(show: Show) -> None:
    trace = tiny_trace()
    page = show(trace)
    links = word_region(trace, weights(trace)[-1].mean(axis=0))
    cells = page.locator("#map tbody td")
    assert cells.count() == links.size
    assert page.locator("#map td.dropped").count() == (links == 0).sum()
    page.locator("#map td[data-word='3'][data-region='1']").hover()
    expect(page.locator("#shown")).to_contain_text("“the”")
    expect(page.locator("#shown")).to_contain_text("; 1 tall building: ")
    expect(page.locator(".region.marked")).to_have_attribute("aria-label", "Region 1 tall building")


# ---- layers and heads ---------------------------------------------------------------------------


def test_pickers_show_each_layer_each_head_and_rollout(show: Show) -> None:
    trace = tiny_trace(layers=3)
    page = show(trace)
    all_weights, text = weights(trace), len(trace.pieces)
    assert page.locator("#layer option").all_text_contents() == [
        "0",
        "1",
        "2 (last)",
        "all: attention rollout",
    ]
    assert page.input_value("#layer") == "2" and page.input_value("#head") == "mean"
    for layer in range(3):
        page.select_option("#layer", index=layer)
        for option, one in enumerate((all_weights[layer].mean(axis=0), *all_weights[layer])):
            page.select_option("#head", index=option)
            assert shown_weights(page, REGIONS) == pytest.approx(one[0, text:], abs=1e-5)
    page.select_option("#layer", "rollout")
    assert page.is_disabled("#head") and page.input_value("#head") == "mean"
    assert shown_weights(page, REGIONS) == pytest.approx(rollout(all_weights)[0, text:], abs=1e-5)


def test_a_grounding_shows_its_boxes_and_rollout_to_the_chosen_region(show: Show) -> None:
    trace = tiny_trace("the large dog", task="rec")
    page = show(trace)
    chosen, text = trace.thresholded.chosen, len(trace.pieces)
    assert chosen is not None
    assert page.input_value("#layer") == "rollout"
    row = rollout(weights(trace))[text + chosen]
    assert shown_weights(page, REGIONS) == pytest.approx(row[text:], abs=1e-5)
    image = page.locator("#picture").bounding_box()
    assert image is not None
    boxes = {
        "chosen": trace.boxes[chosen],
        "runner-up": trace.boxes[trace.thresholded.runner_up],
        "predicted": trace.thresholded.box,
        "target": trace.target_box,
    }
    for kind, box in boxes.items():
        found = page.locator(f".grounding.{kind}").bounding_box()
        assert found is not None
        scale = image["width"] / 320
        drawn = [found["x"] - image["x"], found["y"] - image["y"], found["width"], found["height"]]
        assert np.allclose(
            np.array(drawn) / scale, [box[0], box[1], box[2] - box[0], box[3] - box[1]], atol=3
        )
    table = page.locator("#grounding")
    expect(table).to_be_visible()
    expect(table).to_contain_text("IoU 0.80")  # 8,370 of 10,465 pixels
    expect(page.locator("#answers tbody")).to_contain_text("0 dog")


def test_answers_stand_side_by_side_with_their_probabilities(show: Show) -> None:
    trace = tiny_trace()
    thresholded = replace(trace.thresholded, answers=[("blue", 0.75), ("sky", 0.0004), ("red", float("nan"))])
    page = show(
        replace(
            trace, dense=replace(trace.dense, answers=[("red", 0.5), ("blue", 0.25)]), thresholded=thresholded
        )
    )
    rows = [
        [cell.strip().replace("\xa0", " ") for cell in row.locator("th, td").all_text_contents()]
        for row in page.locator("#answers tbody tr").all()
    ]
    assert rows == [["red", "50 %", "–"], ["blue", "25 %", "75 %"], ["sky", "not among these", "< 0.1 %"]]
    expect(page.locator("#answers .best")).to_have_text(["50\xa0%", "75\xa0%"])


# ---- the graph ----------------------------------------------------------------------------------


def test_the_scene_graph_is_drawn_with_thumbnails_and_links(show: Show) -> None:
    trace = tiny_trace()
    assert trace.graph is not None
    page = show(trace)
    page.wait_for_selector("#graph image")
    for kind, count in (("object", 2), ("attribute", 2), ("relation", 1)):
        assert page.locator(f"#graph rect.{kind}").count() == count
    links = page.locator("#graph path.cross")
    assert links.count() == len(trace.graph["cross_edges"]) == 2
    widths = [float(link.get_attribute("stroke-width") or 0) for link in links.all()]
    assert widths == [0.5 + 4 * edge["weight"] for edge in trace.graph["cross_edges"]]
    description = page.text_content("#graph-title") or ""
    assert "umbrella above dog" in description and "dog is linked with region 0 dog (1)" in description
    page.locator("#graph .node").first.hover()
    expect(page.locator("#shown")).to_contain_text("Region 0 dog")
    expect(page.locator("#graph")).to_be_visible()
    expect(show(replace(trace, graph=None)).locator("#graph-section")).to_be_hidden()


# ---- how it looks -------------------------------------------------------------------------------


def brightness(page: Page, of: str, what: str) -> float:
    color = page.evaluate(f"getComputedStyle(document.querySelector('{of}')).{what}")
    return float(np.mean([float(part) for part in color.removeprefix("rgb(").rstrip(")").split(",")]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light_as_the_reader_prefers_and_by_the_button(scheme: str, show: Show) -> None:
    page = show(tiny_trace(), color_scheme=scheme)

    def is_dark() -> bool:
        paper, ink = brightness(page, "body", "backgroundColor"), brightness(page, "body", "color")
        assert abs(paper - ink) > 150
        return paper < ink

    assert is_dark() == (scheme == "dark")
    page.click("#theme")
    assert is_dark() == (scheme == "light")
    assert page.get_attribute("#theme", "aria-pressed") == str(scheme == "light").lower()
    page.click("#theme")
    assert is_dark() == (scheme == "dark")


LONG = "donaudampfschifffahrtsgesellschaftskapitänswitwe"


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(lambda: tiny_trace(regions=36, labels=(LONG,)), id="36 regions"),
        pytest.param(lambda: tiny_trace("the dog " + LONG * 3, task="rec"), id="rec"),
        pytest.param(lambda: tiny_trace("what is it ? " * 25, answers=(LONG, "b")), id="100 words"),
    ],
)
def test_nothing_is_wider_than_a_phone(trace: Callable[[], Trace], show: Show) -> None:
    page = show(trace(), width=360, height=740)
    page.wait_for_selector("#graph image")
    for _ in range(2):
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        word(page, 0).click()
    picture = page.locator("#picture").bounding_box()
    assert picture is not None and picture["width"] / picture["height"] == pytest.approx(320 / 240, rel=0.01)


def test_on_a_phone_the_image_stays_beside_the_slider_and_the_map_shows_that_it_scrolls(show: Show) -> None:
    page = show(tiny_trace(regions=36), width=390, height=844)
    for name in ("#tau", "#answers"):
        page.locator(name).evaluate("node => node.scrollIntoView({ block: 'center' })")
        picture, control = page.locator("#picture").bounding_box(), page.locator(name).bounding_box()
        assert picture is not None and control is not None
        assert picture["y"] >= 0 and picture["y"] + picture["height"] <= control["y"], name
        assert picture["height"] <= 0.43 * 844
    page.focus("#map-scroll")
    for _ in range(6):  # what Tab goes back to is not hidden behind it
        page.keyboard.press("Shift+Tab")
        settle(page)
        focused = page.evaluate("document.activeElement.getBoundingClientRect().top")
        picture = page.locator("#picture").bounding_box()
        assert picture is not None and focused >= picture["y"] + picture["height"]
    assert page.evaluate("document.activeElement.id") == "rule"
    word(page, 3).click()
    expect(page.locator("#links path").first).to_be_attached()
    page.locator("#tau").evaluate("node => node.scrollIntoView({ block: 'center' })")
    expect(page.locator("#links path")).to_have_count(0)  # its word is out of sight
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator("#links path").first).to_be_attached()
    frame, scroll = page.locator("#map-frame"), page.locator("#map-scroll")
    expect(page.locator("#map-scrolls")).to_be_visible()
    expect(frame).to_have_class("more-right")
    scroll.evaluate("node => node.scrollBy(60, 0)")
    expect(frame).to_have_class("more-right more-left")
    scroll.evaluate("node => node.scrollBy(10000, 0)")
    expect(frame).to_have_class("more-left")
    wide = show(tiny_trace())
    expect(wide.locator("#map-scrolls")).to_be_hidden()
    expect(wide.locator("#map-frame")).to_have_class("")


def test_no_motion_for_those_who_want_none(show: Show) -> None:
    duration = "getComputedStyle(document.querySelector('.region')).transitionDuration"
    assert show(tiny_trace(), reduced_motion="reduce").evaluate(duration) == "0s"
    assert show(tiny_trace(), reduced_motion="no-preference").evaluate(duration) != "0s"


# ---- what may come in ---------------------------------------------------------------------------


def test_text_is_never_html(show: Show) -> None:
    trace = tiny_trace(f"is {HOSTILE} ?", labels=(HOSTILE,), answers=(HOSTILE, "b"))
    assert trace.graph is not None
    trace.graph["objects"][0]["name"] = HOSTILE
    page = show(replace(trace, checkpoint=HOSTILE))
    page.wait_for_selector("#graph image")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 1 and page.locator("script").count() == 4
    assert page.text_content("#question") == trace.text
    expect(page.locator("#answers")).to_contain_text(HOSTILE)
    assert page.title().startswith("is </script><script>")
    # Should text get into a script after all, the policy stops it.
    policy = page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content") or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_no_text_runs_or_loads_anything(show: Show) -> None:
    texts = (
        HOSTILE, "${window.hacked=1}", "`${window.hacked=1}`", "</ScRiPt\t>", "]]>",
        "\"'><svg/onload=window.hacked=1>", "javascript:window.hacked=1", "<!--<script>", "{{script}}",
        "&lt;b&gt;", "\\u003cb>", "$&$1", "<base href=//127.0.0.1:9/>",
        '<iframe src="http://127.0.0.1:9/">', "<link rel=stylesheet href=//127.0.0.1:9/>", "a\u2028b\u2029c",
        "\ud800 lone", "\u202edesrever\u202c", "שלום مرحبا", "a\x00b\x1b[31mc", "x" * 10_000,
    )  # fmt: skip
    trace = tiny_trace(" ".join(texts), regions=len(texts), labels=texts, answers=texts)
    named = itertools.cycle(texts)
    assert trace.graph is not None
    for entry in itertools.chain(*(value for value in trace.graph.values() if isinstance(value, list))):
        if isinstance(entry, dict):
            entry.update({key: next(named) for key, value in entry.items() if isinstance(value, str)})
    page = show(replace(trace, checkpoint=texts[0], task=texts[0]))
    page.wait_for_selector("#graph image")
    for number in range(0, len(texts), 5):
        page.locator(REGIONS).nth(number).dispatch_event("pointerenter", {"pointerType": "mouse"})
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 4 and page.locator("style").count() == 1
    assert page.locator("iframe, object, embed, base, form, a, link:not([rel=icon]), [onload]").count() == 0
    assert page.locator("img").count() == 1
    shown = page.text_content("#question") or ""
    answers = page.locator("#answers tbody").text_content() or ""
    for text in texts:
        plain = OBEYED.sub(lambda found: " " * found[0].isspace(), text)
        assert " ".join(plain.split()) in shown and plain in answers
    assert not OBEYED.search(page.content().replace("\n", ""))


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(lambda: tiny_trace(regions=0), id="no regions"),
        pytest.param(lambda: tiny_trace(""), id="no words"),
        pytest.param(lambda: tiny_trace("", regions=0, graph=False), id="nothing"),
        pytest.param(lambda: tiny_trace(regions=1, layers=1, heads=1), id="one of each"),
        pytest.param(lambda: tiny_trace("这 是 \ud83d 🐶 مرحبا ?", labels=("狗", "\x00")), id="not Latin"),
        pytest.param(lambda: replace(tiny_trace(), selection="entmax15", threshold=1.0), id="another rule"),
        pytest.param(lambda: replace(tiny_trace(), task="pretrain"), id="pretrain"),
    ],
)
def test_odd_traces_are_shown(trace: Callable[[], Trace], show: Show) -> None:
    content = trace()
    page = show(content)
    assert shown_counts(page, "all")["all"][1] == content.dense.kept.size
    assert page.locator(REGIONS).count() == len(content.boxes)
    assert page.locator(WORDS).count() == len(content.words)


def test_hidden_keys_are_neither_kept_nor_counted(show: Show) -> None:
    trace = tiny_trace()
    scores, kept = trace.dense.scores.copy(), trace.dense.kept.copy()
    scores[..., -1], kept[..., -1] = -np.inf, False
    page = show(replace(trace, dense=replace(trace.dense, scores=scores, kept=kept)))
    choose(page, "relative", 0)
    assert shown_counts(page, "all")["all"] == (int(kept.sum()), int(kept.sum()))
    assert shown_weights(page, REGIONS)[-1] == 0


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    trace = tiny_trace()
    wrong = [
        replace(trace, boxes=trace.boxes[:-1]),
        replace(trace, region_labels=["dog"]),
        replace(trace, words=["what"]),
    ]
    for broken in wrong:
        with pytest.raises(DataError, match="trace: "):
            write_page(tmp_path / "page.html", broken)
    assert list(tmp_path.iterdir()) == []


def test_the_same_trace_makes_the_same_file(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_page(tmp_path / "new" / name, tiny_trace())
    first, second = sorted((tmp_path / "new").iterdir())
    assert first.read_bytes() == second.read_bytes()
