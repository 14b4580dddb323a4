"""The page's script and the model keep the same keys, under every rule of the table.

The page computes on float16 scores in double precision and rounds to single where it stores, as the model's
single precision does: what both do in one step (adding ln τ, comparing, sorting) is equal to the last bit,
ties included. A sum of exponentials is not: under `SUMMED` rules a score may lie so near to the least one
kept that the rounding of the two sums decides; only such scores are left out of the comparison.
"""

from __future__ import annotations

import base64
import json
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbkin_core.modeling.attention import scope_mask, select_keys
from tbkin_core.selection import RULE_TABLE, RULES, SCOPES, TRANSFORMS

LAYERS, HEADS, LENGTH = 2, 2, 7
SUMMED = ("probability",)
SCRIPT = files("tbkin_core") / "resources" / "page" / "attention.js"
KEPT_IN_PAGE = """({ scores, shape, textLength, scope, layers, rule, threshold }) => {
  const attention = new Attention(decodeHalfFloats(scores), shape, textLength, scope, layers);
  attention.select(rule, threshold);
  const kept = new Array(attention.scores.length).fill(0);
  attention.eachRow(null, null, (row) => {
    for (const [start, end, , least] of attention.parts(row)) {
      for (let place = row * attention.length + start; place < row * attention.length + end; place++) {
        const score = attention.scores[place];
        kept[place] = Number(score >= least && score > -Infinity);
      }
    }
  });
  return { kept, count: attention.counts(null, null).all[0] };
}"""
LINE_BY_LINE = f"""
require("vm").runInThisContext(require("fs").readFileSync(process.argv[1], "utf8"));
const keptInPage = {KEPT_IN_PAGE};
require("readline").createInterface({{ input: process.stdin }}).on("line", (line) => {{
  const request = JSON.parse(line);
  let answer;
  try {{
    answer = request ? keptInPage(request) : Object.keys(LEAST_SCORES);
  }} catch (error) {{
    answer = {{ error: error.message }};
  }}
  console.log(JSON.stringify(answer));
}});
"""


def thresholds(rule: str) -> st.SearchStrategy[float]:
    """Any threshold of a rule, often one that ties with scores in steps of a half, and 0."""
    entry = RULE_TABLE[rule]
    if entry.whole:
        return st.integers(0, LENGTH + 2).map(float)
    if math.isinf(entry.low):
        return st.one_of(st.floats(-4, 4), st.integers(-8, 8).map(lambda half: half / 2))
    most = min(entry.high, LENGTH)
    ties = st.integers(0, 12).map(lambda half: math.exp(-half / 2))
    return st.one_of(st.floats(1e-6, most), ties, st.just(0.0), st.just(float(most)))


@st.composite
def cases(draw: st.DrawFn, rule: str) -> dict[str, Any]:
    """What the page is asked: random scores with ties and hidden keys, and a selection."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (LAYERS, HEADS, LENGTH, LENGTH)
    scores = draw(st.sampled_from((0.3, 1.5, 6.0))) * chance.standard_normal(shape)
    if draw(st.booleans()):
        scores = np.round(2 * scores) / 2
    hidden = chance.random(shape) < draw(st.sampled_from((0.0, 0.3, 0.9)))
    hidden[..., np.arange(LENGTH), chance.permutation(LENGTH)] = False  # every row has a key
    scores[hidden] = -np.inf
    return {
        "scores": base64.b64encode(scores.astype("<f2").tobytes()).decode(),
        "shape": shape[:3],
        "textLength": draw(st.integers(0, LENGTH)),
        "scope": draw(st.sampled_from(SCOPES)),
        "layers": draw(st.sampled_from((None, [1], [0, 1], []))),
        "rule": rule,
        "threshold": draw(thresholds(rule)),
    }


def kept_by_model(case: dict[str, Any], dtype: torch.dtype, factor: float = 1.0) -> NDArray[np.bool_]:
    """(N, H, L, L) of `select_keys` on the scores of a case, with `factor` times its threshold."""
    halves = np.frombuffer(base64.b64decode(case["scores"]), "<f2").reshape(*case["shape"], LENGTH)
    scores = torch.from_numpy(halves.astype(np.float32)).to(dtype)
    scope = scope_mask(case["scope"], case["textLength"], LENGTH)
    kept = select_keys(scores, case["rule"], factor * case["threshold"], scope)
    for layer in range(LAYERS):
        if case["layers"] is not None and layer not in case["layers"]:
            kept[layer] = scores[layer] > -torch.inf
    return kept.numpy()


def unsure(case: dict[str, Any]) -> NDArray[np.bool_]:
    """(N, H, L, L) where a sum of exponentials may decide either way, as it is rounded."""
    if case["rule"] not in SUMMED:
        return np.zeros((*case["shape"], LENGTH), bool)
    few, many = (kept_by_model(case, torch.float64, factor) for factor in (1 + 1e-5, 1 - 1e-5))
    return few != many


def compare(case: dict[str, Any], answer: dict[str, Any]) -> None:
    expected = kept_by_model(case, torch.float32)
    kept = np.array(answer["kept"], bool).reshape(expected.shape)
    assert answer["count"] == kept.sum()
    sure = ~unsure(case)
    np.testing.assert_array_equal(kept[sure], expected[sure])


Ask = Callable[[Any], Any]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """The shipped script in Node: one process for all cases."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed; tests/test_page.py compares in a browser")
    with subprocess.Popen(
        [program, "-e", LINE_BY_LINE, str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def asked(request: Any) -> Any:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert "error" not in answer, answer
            return answer

        yield asked


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_page_and_model_keep_the_same_keys(rule: str, ask: Ask, data: st.DataObject) -> None:
    case = data.draw(cases(rule))
    compare(case, ask(case))


def test_the_page_has_every_rule_of_the_table_and_no_other(ask: Ask) -> None:
    assert set(ask(None)) == set(RULES) == set(RULE_TABLE) - set(TRANSFORMS)


@pytest.mark.parametrize("rule", SUMMED)
def test_the_comparison_leaves_out_next_to_nothing(rule: str) -> None:
    """Else the comparison of the `SUMMED` rules would say little."""
    shares = []

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(case=cases(rule))
    def count(case: dict[str, Any]) -> None:
        shares.append(float(unsure(case).mean()))

    count()
    assert np.mean(shares) < 0.01
