// Threshold, view, answers and boxes.

// ---- controls -----------------------------------------------------------------------------------

/** Bounds of the slider: [least, most, step]. */
function bounds(name) {
  const rule = trace.rules[name];
  // A rule without a least threshold compares scores; a number of keys, or of mean weights, ends with the keys.
  const least = rule.low ?? Math.min(0, Math.floor(dense.lowest));
  const most = rule.high ?? (rule.low === null ? Math.max(0, Math.ceil(dense.highest)) : dense.length);
  return [least, most, rule.step ?? (most - least > 4 ? 0.05 : 0.01)];
}

function renderThreshold() {
  const rule = trace.rules[state.rule];
  $("tau").disabled = $("tau-exact").disabled = !rule.symbol;
  if (!rule.symbol) {
    $("tau-name").textContent = "τ";
    $("tau-exact").value = "";
    $("rule-note").textContent = `${state.rule} drops keys without a threshold, in the softmax’s place.`;
    return;
  }
  const [min, max, step] = bounds(state.rule);
  Object.assign($("tau"), { min, max, step, value: threshold() });
  // The slider goes in steps; the number beside it says what is applied.
  Object.assign($("tau-exact"), { min, max, step: rule.whole ? 1 : "any", value: threshold() });
  $("tau-name").textContent = rule.symbol;
  $("rule-note").textContent = `Each query keeps the keys ${rule.keeps}; its strongest always. 0 keeps all.`;
}

let waiting = false;

/** Once a frame, however fast the slider moves. */
function recomputeSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    recompute();
  });
}

/** What follows a move of the threshold, once it rests; the page of a server asks the model anew. */
let thresholdMoved = () => {};

function connectControls() {
  $("rule").addEventListener("change", () => {
    state.rule = $("rule").value;
    renderThreshold();
    recompute();
    thresholdMoved();
  });
  $("tau").addEventListener("input", () => {
    state.thresholds[state.rule] = Number($("tau").value);
    $("tau-exact").value = $("tau").value;
    recomputeSoon();
    thresholdMoved();
  });
  $("tau-exact").addEventListener("input", () => {
    const [least, most] = bounds(state.rule);
    const value = $("tau-exact").valueAsNumber;
    if (Number.isNaN(value)) return;
    const inside = Math.min(Math.max(value, least), most);
    state.thresholds[state.rule] = trace.rules[state.rule].whole ? Math.round(inside) : inside;
    $("tau").value = threshold();
    recomputeSoon();
    thresholdMoved();
  });
  $("tau-exact").addEventListener("change", () => ($("tau-exact").value = threshold()));
  $("own").addEventListener("click", () => {
    state.rule = $("rule").value = trace.selection;
    state.thresholds[state.rule] = trace.threshold;
    renderThreshold();
    recompute();
    $("tau").focus();
  });
  const chooseView = () => {
    state.layer = $("layer").value === "rollout" ? "rollout" : Number($("layer").value);
    if (state.layer === "rollout") $("head").value = "mean"; // rollout averages the heads
    $("head").disabled = state.layer === "rollout";
    state.head = $("head").value === "mean" ? null : Number($("head").value);
    state.direction = $("direction").value;
    recompute();
  };
  for (const id of ["layer", "head", "direction"]) $(id).addEventListener("change", chooseView);
}

function buildControls() {
  $("rule").replaceChildren(...rules.map((name) => make("option", { value: name }, name)));
  $("rule").value = state.rule;
  renderThreshold();
  const last = dense.layerCount - 1;
  const layers = Array.from({ length: last + 1 }, (_, layer) =>
    make("option", { value: layer }, `${layer}${layer === last ? " (last)" : ""}`));
  $("layer").replaceChildren(...layers, make("option", { value: "rollout" }, "all: attention rollout"));
  $("layer").value = state.layer;
  const heads = Array.from({ length: dense.headCount }, (_, head) =>
    make("option", { value: head }, String(head)));
  $("head").replaceChildren(make("option", { value: "mean" }, "mean of heads"), ...heads);
  $("head").value = state.head ?? "mean";
  $("head").disabled = state.layer === "rollout";
  $("direction").value = state.direction;
}

/** Which pass the view is of, in words; and the way back to the model's own threshold. */
function renderView() {
  const pass = passShown();
  const own = ruleName(trace.selection, trace.threshold);
  $("run-name").title = `The thresholded pass of the model: ${own}`;
  $("own").hidden = followsThreshold || (state.rule === trace.selection && threshold() === trace.threshold);
  $("own").textContent = `Back to ${own}`;
  const only = trace.layers ? ` The model selects in layer ${trace.layers.join(", ")} only.` : "";
  const where = trace.scope === "all" ? "" : ` Only ${trace.scope} links may be dropped.`;
  if (pass) {
    const which = pass === "dense" ? "dense pass" : `pass with ${own}`;
    $("independent").textContent = `This is the model’s own ${which}`
      + `${followsThreshold ? "" : ", as in the figure"}.${only}${where}`;
    return;
  }
  $("independent").textContent = "Recomputed here from the scores of the dense pass, each layer by itself:"
    + " what a lower layer drops does not change the scores of the layers above it. In the model it does, so"
    + ` its own pass with this threshold may differ${followsThreshold ? "; it follows" : ""}.${only}${where}`;
}

function buildTheme() {
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const show = () => {
    const dark = chosen ?? preferred.matches;
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    $("theme").setAttribute("aria-pressed", String(dark));
  };
  preferred.addEventListener("change", show);
  $("theme").addEventListener("click", () => {
    chosen = !(chosen ?? preferred.matches);
    show();
  });
  show();
}

// ---- answers and boxes --------------------------------------------------------------------------

/** An answer; regions are called as in the figure: "3 dog". */
function answerName(name) {
  const region = trace.answersAreRegions ? /^region (\d+)$/.exec(name) : null;
  return region ? regionName(Number(region[1])) : name;
}

/** Whether the model answers anew at each threshold: in the page of a server. */
let followsThreshold = false;

function buildAnswers() {
  const run = ruleName(trace.selection, trace.threshold);
  const heads = [trace.answerHeading, "dense", run];
  $("answers-heading").textContent = grounded() ? "Regions" : "Answers";
  const cellsOf = (names) => names.map((name) => make("th", { scope: "col" }, name));
  $("answers").tHead.replaceChildren(make("tr", {}, ...cellsOf(heads)));
  const sides = [trace.dense.answers, trace.thresholded.answers].map((answers) => new Map(answers));
  const names = new Set([...sides[0].keys(), ...sides[1].keys()]);
  const rows = [];
  const best = sides.map((side) => side.keys().next().value);
  for (const name of names) {
    const cells = sides.map((side, which) => {
      if (!side.has(name)) return make("td", { class: "none" }, "not among these");
      const probability = side.get(name);
      const bar = make("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--weight", probability ?? 0);
      return make("td", best[which] === name ? { class: "best" } : {}, percent(probability), bar);
    });
    const heading = make("th", { scope: "row", dir: "auto" }, answerName(name));
    rows.push(make("tr", {}, heading, ...cells));
  }
  $("answers").tBodies[0].replaceChildren(...rows);
  $("answers-note").textContent = followsThreshold
    ? "Of the model’s own passes; the right-hand one follows the slider."
    : `Of the model’s own passes, dense and with ${run}: these do not follow the slider, for the model is not`
      + " in this page.";
  $("grounding").hidden = !trace.grounding.length;
  const [head, body] = [$("grounding").querySelector("thead"), $("grounding").querySelector("tbody")];
  head.replaceChildren(make("tr", {}, ...cellsOf(["", "dense", run])));
  body.replaceChildren(...trace.grounding.map(({ name, kind, cells }) => {
    const key = make("span", { class: `key ${kind}`, "aria-hidden": "true" });
    const heading = make("th", { scope: "row" }, key, name);
    return make("tr", {}, heading, ...cells.map((text) => make("td", {}, text)));
  }));
}

