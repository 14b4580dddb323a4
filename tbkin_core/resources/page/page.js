// The page itself. Text of the trace only ever becomes text nodes and attributes, never HTML.

const trace = JSON.parse(document.getElementById("trace").textContent);
const attention = new Attention(
  decodeHalfFloats(document.getElementById("scores").textContent),
  trace.shape, trace.pieces.length, trace.scope, trace.layers,
);
const $ = (id) => document.getElementById(id);
const wordCount = trace.words.length;
const regionCount = trace.boxes.length;
const textLength = trace.pieces.length;
// The row that the answer is read from, as in the figures: [CLS], or what a grounding chose.
const grounded = trace.thresholded.chosen !== null;
const answerRow = grounded ? textLength + trace.thresholded.chosen : 0;
const RULES = Object.keys(trace.rules).filter((name) => trace.rules[name].symbol);
const MAX_LINKS = 12;
const LABELLED = 3;

const state = {
  rule: RULES.includes(trace.selection) ? trace.selection : RULES[0],
  // The last threshold of each rule, so that going back to a rule goes back to it. 0 is dense.
  thresholds: {
    ...Object.fromEntries(RULES.map((name) => [name, trace.rules[name].usual])),
    [trace.selection]: trace.threshold,
  },
  layer: trace.aggregate === "rollout" ? "rollout" : attention.layerCount - 1,
  head: null, // mean of heads
  direction: "text",
  pinned: null, // what is shown while nothing is pointed at; null is the answer
  hovered: null,
};
// What the state comes to: (L, L) weights, and links (W, K) and (K, W) in the two directions.
let weights, wordRegion, regionWord;

// ---- small helpers ------------------------------------------------------------------------------

/** An element with attributes, and children that are elements or text. */
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function draw(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Never "0 %" or "100 %" for what is only nearly so. */
function percent(fraction) {
  if (fraction === null || Number.isNaN(fraction)) return "–";
  // Number and sign stay on one line: the spaces do not break.
  if (fraction > 0 && fraction < 0.001) return "<\u00a00.1\u00a0%";
  if (fraction > 0.999 && fraction < 1) return ">\u00a099.9\u00a0%";
  return `${Number((100 * fraction).toPrecision(3))}\u00a0%`;
}

const regionName = (region) => `${region} ${trace.labels[region]}`.trim();
const quoted = (word) => `“${trace.words[word]}”`;
const threshold = () => state.thresholds[state.rule];
const ruleName = (rule, value) =>
  trace.rules[rule].phrase.replace("{name}", rule).replace("{threshold}", value);

/** Numbers of the largest values above 0, the largest first. */
function strongest(values, limit) {
  return Array.from(values.keys()).filter((place) => values[place] > 0)
    .sort((first, second) => values[second] - values[first]).slice(0, limit);
}

function listed(values, name) {
  return strongest(values, 3).map((place) => `${name(place)} ${percent(values[place])}`).join(", ");
}

// ---- from scores to links -----------------------------------------------------------------------

function recompute() {
  attention.select(state.rule, threshold());
  const rollout = state.layer === "rollout";
  weights = rollout ? attention.rollout() : attention.weights(state.layer, state.head);
  const { length } = attention;
  wordRegion = new Float32Array(wordCount * regionCount);
  regionWord = new Float32Array(regionCount * wordCount);
  const pieces = new Array(wordCount).fill(0);
  for (const word of trace.wordIds) if (word >= 0) pieces[word]++;
  trace.wordIds.forEach((word, piece) => {
    if (word < 0) return;
    for (let region = 0; region < regionCount; region++) {
      // A word attends as its pieces do on average, and receives what they receive together.
      wordRegion[word * regionCount + region] += weights[piece * length + textLength + region] / pieces[word];
      regionWord[region * wordCount + word] += weights[(textLength + region) * length + piece];
    }
  });
  renderKept();
  renderMap();
  render();
}

/** Weight of the link between a word and a region, in the direction that is shown. */
function link(word, region) {
  return state.direction === "text"
    ? wordRegion[word * regionCount + region]
    : regionWord[region * wordCount + word];
}

/** What is shown for a source: weights of the words and of the regions, and a sentence. */
function shown(source) {
  const regions = new Float32Array(regionCount);
  const words = new Float32Array(wordCount);
  const reading = state.direction === "text";
  if (source.kind === "word") {
    for (let region = 0; region < regionCount; region++) regions[region] = link(source.index, region);
    const kept = strongest(regions, regionCount);
    const verb = reading ? "attends to" : "is attended to by";
    let text = `${quoted(source.index)} ${verb} ${kept.length} of ${regionCount} regions`;
    if (kept.length) text += `, most ${reading ? "to" : "by"}: ${listed(regions, regionName)}`;
    if (source.mark !== undefined) {
      const weight = regions[source.mark];
      text += `; ${regionName(source.mark)}: ${weight ? percent(weight) : "dropped"}`;
    }
    return { regions, words, text: `${text}.` };
  }
  if (source.kind === "region") {
    for (let word = 0; word < wordCount; word++) words[word] = link(word, source.index);
    const kept = strongest(words, wordCount);
    const verb = reading ? "is attended to by" : "attends to";
    let text = `Region ${regionName(source.index)} ${verb} ${kept.length} of ${wordCount} words`;
    if (kept.length) text += `, most ${reading ? "by" : "to"}: ${listed(words, quoted)}`;
    return { regions, words, text: `${text}.` };
  }
  const row = answerRow * attention.length;
  for (let region = 0; region < regionCount; region++) regions[region] = weights[row + textLength + region];
  trace.wordIds.forEach((word, piece) => {
    if (word >= 0) words[word] += weights[row + piece];
  });
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const reader = grounded ? `the chosen region ${regionName(trace.thresholded.chosen)}` : "[CLS]";
  let text = `The answer is read from ${reader}: `;
  if (!strongest(regions, 1).length) text += "none of its attention is on regions";
  else text += `${percent(sum(regions))} of its attention is on regions (most: ${listed(regions, regionName)})`;
  text += `, ${percent(sum(words))} on words`;
  if (strongest(words, 1).length) text += ` (most: ${listed(words, quoted)})`;
  return { regions, words, text: `${text}.` };
}

// ---- drawing what is shown ----------------------------------------------------------------------

const sources = []; // buttons with their source: the answer, the words, the regions
let current = null;

const same = (one, other) => one?.kind === other?.kind && one?.index === other?.index;

function render() {
  const source = state.hovered ?? state.pinned ?? { kind: "answer" };
  current = shown(source);
  const highest = { word: Math.max(...current.words, 0), region: Math.max(...current.regions, 0) };
  for (const { node, kind, index, meter } of sources) {
    const isSource = same(source, { kind, index });
    node.classList.toggle("source", isSource);
    node.setAttribute("aria-pressed", String(same(state.pinned, { kind, index })));
    if (kind === "answer") continue;
    const weight = (kind === "word" ? current.words : current.regions)[index];
    node.style.setProperty("--weight", highest[kind] ? weight / highest[kind] : 0);
    node.classList.toggle("lit", weight > 0);
    node.classList.toggle("marked", kind === "region" && source.mark === index);
    node.dataset.weight = weight;
    if (meter) meter.textContent = weight > 0 ? percent(weight) : "";
  }
  // What nobody looks at goes dark; while a region is the source it stays bright.
  scrimHoles.forEach((hole, region) => {
    const share = highest.region ? current.regions[region] / highest.region : 0;
    hole.setAttribute("fill-opacity", source.kind === "region" && source.index === region ? 1 : share);
  });
  $("shown").textContent = current.text;
  renderLabels(source);
  renderLinks(source);
  for (const node of document.querySelectorAll("#map .near")) node.classList.remove("near");
  if (source.kind === "word") mapRows[source.index]?.classList.add("near");
  if (source.kind === "region") for (const cell of mapColumns[source.index] ?? []) cell.classList.add("near");
}

/** Names of the grounding's boxes and of the strongest regions, where they do not lie over each other. */
function renderLabels(source) {
  const [width, height] = [$("picture").clientWidth, $("picture").clientHeight];
  const wanted = source.kind === "region" ? [source.index] : strongest(current.regions, LABELLED);
  if (source.mark !== undefined) wanted.unshift(source.mark);
  const named = grounded ? [trace.thresholded.chosen, trace.thresholded.runnerUp] : [];
  const names = [
    ...trace.groundingBoxes.map(({ name, box, kind }) => [name, box, kind]),
    ...Array.from(new Set(wanted)).filter((region) => !named.includes(region))
      .map((region) => [regionName(region), trace.boxes[region], ""]),
  ];
  const taken = [];
  $("region-names").replaceChildren();
  for (const [name, box, kind] of names) {
    const tag = make("span", { class: `tag ${kind}` }, name);
    $("region-names").append(tag);
    const size = [tag.offsetWidth, tag.offsetHeight];
    const [left, top, right, bottom] = box.map((side, which) =>
      side * (which % 2 ? height / trace.imageSize[1] : width / trace.imageSize[0]));
    // Outside the box first, then inside; at the left, at the right; and always within the picture.
    const place = [top - size[1], bottom, top, bottom - size[1]]
      .flatMap((y) => [[left, y], [right - size[0], y]])
      .map(([x, y]) => [Math.min(x, width - size[0]), Math.min(y, height - size[1])])
      .map((corner) => corner.map((side) => Math.max(side, 0)))
      .find(([x, y]) => !taken.some(([otherX, otherY, wide, high]) =>
        x < otherX + wide && otherX < x + size[0] && y < otherY + high && otherY < y + size[1]));
    if (place) {
      taken.push([...place, ...size]);
      tag.style.left = `${place[0]}px`;
      tag.style.top = `${place[1]}px`;
    } else tag.remove();
  }
}

/** Lines between the source and what it is linked with, in pixels of the stage. */
function renderLinks(source) {
  const lines = [];
  if (source.kind !== "answer") {
    const stage = $("stage").getBoundingClientRect();
    const centre = (kind, index) => {
      const box = sourceOf(kind, index).getBoundingClientRect();
      const x = box.left + box.width / 2 - stage.left;
      return [x, (kind === "word" ? box.bottom : box.top + box.height / 2) - stage.top];
    };
    const other = source.kind === "word" ? "region" : "word";
    const values = source.kind === "word" ? current.regions : current.words;
    const highest = Math.max(...values, 0);
    const from = centre(source.kind, source.index);
    for (const place of strongest(values, MAX_LINKS)) {
      const share = values[place] / highest;
      const ends = [from, centre(other, place)];
      const [word, region] = source.kind === "word" ? ends : ends.reverse();
      lines.push(draw("path", {
        d: `M${word} C${word[0]},${word[1] + 40} ${region[0]},${(word[1] + region[1]) / 2} ${region}`,
        "stroke-width": 0.75 + 4 * share, "stroke-opacity": 0.25 + 0.65 * share,
      }));
    }
  }
  $("links").replaceChildren(...lines);
}

const sourceOf = (kind, index) => sources.find((one) => one.kind === kind && one.index === index).node;

function renderKept() {
  const isRollout = state.layer === "rollout";
  const all = attention.counts(null, null);
  const here = isRollout ? all : attention.counts(state.layer, state.head);
  const share = ([kept, total]) => percent(total ? kept / total : NaN);
  const rows = ["all", ...DIRECTIONS].map((direction) => {
    const cells = [["all", all], ["shown", here], ["run", trace.runKept]].map(([name, counts]) => {
      const [kept, total] = counts[direction];
      return make("td", {
        "data-column": name, "data-kept": kept, "data-total": total, title: `${kept} of ${total}`,
      }, share(counts[direction]));
    });
    const name = direction === "all" ? "all" : direction.replace("-to-", " → ");
    return make("tr", { "data-direction": direction }, make("th", { scope: "row" }, name), ...cells);
  });
  $("kept").tBodies[0].replaceChildren(...rows);
  let surviving = 0;
  const values = state.direction === "text" ? wordRegion : regionWord;
  for (const value of values) if (value > 0) surviving++;
  const way = state.direction === "text" ? "from words to regions" : "from regions to words";
  $("survive").textContent = values.length
    ? `${surviving} of ${values.length} links ${way} survive`
      + (isRollout ? ", directly or by way of others" : "")
      + `; ${share(all.all)} of all attention entries are kept.`
    : `${share(all.all)} of all attention entries are kept.`;
  $("tau").setAttribute("aria-valuetext", `${ruleName(state.rule, threshold())}: ${share(all.all)} kept`);
}

// ---- the map of words and regions ---------------------------------------------------------------

const mapRows = [];
const mapColumns = Array.from({ length: regionCount }, () => []);
const mapCells = []; // [cell, the text in it, word, region]

function buildMap() {
  if (!wordCount || !regionCount) return void ($("map-section").hidden = true);
  const header = trace.labels.map((_, region) => {
    const attributes = { scope: "col", title: regionName(region), "data-region": region };
    const cell = make("th", attributes, String(region));
    mapColumns[region].push(cell);
    return cell;
  });
  $("map").append(
    make("caption", { class: "unseen" }, "Attention between each word and each region"),
    make("thead", {}, make("tr", {}, make("td"), ...header)),
    make("tbody", {}, ...trace.words.map((name, word) => {
      const cells = trace.labels.map((_, region) => {
        const text = make("span", { class: "unseen" });
        const cell = make("td", { "data-word": word, "data-region": region }, text);
        mapColumns[region].push(cell);
        mapCells.push([cell, text, word, region]);
        return cell;
      });
      const attributes = { scope: "row", dir: "auto", title: name, "data-word": word };
      const row = make("tr", {}, make("th", attributes, name), ...cells);
      mapRows.push(row);
      return row;
    })),
  );
  $("map").addEventListener("pointerover", (event) => {
    const { word, region } = event.target.closest("[data-word], [data-region]")?.dataset ?? {};
    const mark = region && { mark: Number(region) };
    if (word !== undefined) hover({ kind: "word", index: Number(word), ...mark });
    else if (region !== undefined) hover({ kind: "region", index: Number(region) });
  });
  $("map").addEventListener("pointerleave", () => hover(null));
}

function renderMap() {
  const highest = mapCells.reduce((most, [, , word, region]) => Math.max(most, link(word, region)), 0);
  for (const [cell, text, word, region] of mapCells) {
    const weight = link(word, region);
    cell.style.setProperty("--weight", highest ? weight / highest : 0);
    cell.classList.toggle("dropped", weight === 0);
    text.textContent = weight ? percent(weight) : "dropped";
  }
  const [giver, taker] = state.direction === "text" ? ["word", "region"] : ["region", "word"];
  $("map-note").textContent = `The share that each ${giver} gives to each ${taker}, ${viewName()}. The`
    + ` strongest cell is ${percent(highest)}; a dot is a dropped link. Numbers are regions.`;
}

function viewName() {
  if (state.layer === "rollout") return "by attention rollout over all layers";
  const head = state.head === null ? "mean of heads" : `head ${state.head}`;
  return `in layer ${state.layer}, ${head}`;
}

// ---- pointing and pinning -----------------------------------------------------------------------

function hover(source) {
  const wasMark = state.hovered?.mark;
  if (same(source, state.hovered) && source?.mark === wasMark) return;
  state.hovered = source;
  render();
}

function pin(source) {
  state.pinned = same(state.pinned, source) || source.kind === "answer" ? null : source;
  if (state.pinned === null) state.hovered = null;
  render();
}

function release() {
  state.pinned = null;
  state.hovered = null;
  render();
}

/** Make a button show its source when it is pointed at or focused, and pin it when pressed. */
function connect(node, kind, index, meter) {
  const source = { kind, index };
  sources.push({ node, kind, index, meter });
  node.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && hover(source));
  node.addEventListener("pointerleave", () => hover(null));
  node.addEventListener("focus", () => node.matches(":focus-visible") && hover(source));
  node.addEventListener("blur", () => hover(null));
  node.addEventListener("click", () => pin(source));
}

function buildWords() {
  const answer = make("button", { type: "button", class: "word answer" },
    make("span", {}, grounded ? `chosen: ${regionName(trace.thresholded.chosen)}` : "answer [CLS]"));
  connect(answer, "answer", undefined);
  $("words").append(answer);
  trace.words.forEach((word, index) => {
    const meter = make("span", { class: "meter" });
    const node = make("button", { type: "button", class: "word", dir: "auto" },
      make("span", {}, word), make("span", { class: "bar", "aria-hidden": "true" }), meter);
    connect(node, "word", index, meter);
    $("words").append(node);
  });
}

const scrimHoles = [];

function buildPicture() {
  const [width, height] = trace.imageSize;
  $("image").alt = `The image, ${width} × ${height} pixels, with ${regionCount} regions`
    + (trace.labels.some(Boolean) ? `: ${trace.labels.filter(Boolean).slice(0, 12).join(", ")}` : "");
  const { style } = $("picture");
  style.aspectRatio = `${width} / ${height}`;
  style.maxWidth = `${(75 * width) / height}vh`; // so that its height stays below 75 % of the window's
  // A sheet of shade with holes: where regions overlap their light adds up.
  const mask = draw("mask", { id: "holes" }, draw("rect", { width, height, fill: "white" }));
  for (const [left, top, right, bottom] of trace.boxes) {
    const box = { x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0) };
    const hole = draw("rect", { ...box, fill: "black" });
    scrimHoles.push(hole);
    mask.append(hole);
  }
  $("scrim").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("scrim").append(draw("defs", {}, mask), draw("rect", { width, height, mask: "url(#holes)" }));
  const percentOf = (box) => ({
    left: `${(100 * box[0]) / width}%`, top: `${(100 * box[1]) / height}%`,
    width: `${(100 * (box[2] - box[0])) / width}%`, height: `${(100 * (box[3] - box[1])) / height}%`,
  });
  const areas = trace.boxes.map(([left, top, right, bottom]) => (right - left) * (bottom - top));
  const smaller = areas.map((area) => areas.filter((other) => other > area).length);
  trace.boxes.forEach((box, region) => {
    const node = make("button", {
      type: "button",
      class: "region",
      tabindex: region ? -1 : 0,
      "aria-label": `Region ${regionName(region)}`,
    });
    Object.assign(node.style, percentOf(box), { zIndex: 1 + smaller[region] }); // small ones above large ones
    connect(node, "region", region);
    $("regions").append(node);
  });
  for (const { kind, box } of trace.groundingBoxes) {
    const frame = make("span", { class: `grounding ${kind}` });
    Object.assign(frame.style, percentOf(box));
    $("picture").append(frame);
  }
  $("picture").append(make("div", { id: "region-names", "aria-hidden": "true" }));
  // One stop for Tab; the arrow keys go from region to region in the order of their numbers.
  $("regions").addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const nodes = Array.from($("regions").children);
    const at = nodes.indexOf(document.activeElement);
    let next = at + (steps[event.key] ?? 0);
    if (event.key === "Home") next = 0;
    if (event.key === "End") next = nodes.length - 1;
    if (at < 0 || next === at) return;
    event.preventDefault();
    next = (next + nodes.length) % nodes.length;
    nodes[at].tabIndex = -1;
    nodes[next].tabIndex = 0;
    nodes[next].focus();
  });
}

// ---- controls -----------------------------------------------------------------------------------

/** Bounds of the slider: [least, most, step]. */
function bounds(name) {
  const rule = trace.rules[name];
  // A rule without a least threshold compares scores; a number of keys, or of mean weights, ends with the keys.
  const least = rule.low ?? Math.min(0, Math.floor(attention.lowest));
  const most = rule.high ?? (rule.low === null ? Math.max(0, Math.ceil(attention.highest)) : attention.length);
  return [least, most, rule.step ?? (most - least > 4 ? 0.05 : 0.01)];
}

function renderThreshold() {
  const [min, max, step] = bounds(state.rule);
  const rule = trace.rules[state.rule];
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

function buildControls() {
  $("rule").append(...RULES.map((name) => make("option", { value: name }, name)));
  $("rule").value = state.rule;
  renderThreshold();
  $("rule").addEventListener("change", () => {
    state.rule = $("rule").value;
    renderThreshold();
    recompute();
  });
  $("tau").addEventListener("input", () => {
    state.thresholds[state.rule] = Number($("tau").value);
    $("tau-exact").value = $("tau").value;
    recomputeSoon();
  });
  $("tau-exact").addEventListener("input", () => {
    const [least, most] = bounds(state.rule);
    const value = $("tau-exact").valueAsNumber;
    if (Number.isNaN(value)) return;
    const inside = Math.min(Math.max(value, least), most);
    state.thresholds[state.rule] = trace.rules[state.rule].whole ? Math.round(inside) : inside;
    $("tau").value = threshold();
    recomputeSoon();
  });
  $("tau-exact").addEventListener("change", () => ($("tau-exact").value = threshold()));
  const last = attention.layerCount - 1;
  for (let layer = 0; layer <= last; layer++) {
    $("layer").append(make("option", { value: layer }, `${layer}${layer === last ? " (last)" : ""}`));
  }
  $("layer").append(make("option", { value: "rollout" }, "all: attention rollout"));
  $("layer").value = state.layer;
  $("head").append(make("option", { value: "mean" }, "mean of heads"));
  for (let head = 0; head < attention.headCount; head++) {
    $("head").append(make("option", { value: head }, String(head)));
  }
  const chooseView = () => {
    state.layer = $("layer").value === "rollout" ? "rollout" : Number($("layer").value);
    if (state.layer === "rollout") $("head").value = "mean"; // rollout averages the heads
    $("head").disabled = state.layer === "rollout";
    state.head = $("head").value === "mean" ? null : Number($("head").value);
    state.direction = $("direction").value;
    recompute();
  };
  for (const id of ["layer", "head", "direction"]) $(id).addEventListener("change", chooseView);
  $("head").disabled = state.layer === "rollout";
  const selecting = trace.layers?.join(", ");
  const only = trace.layers ? ` The model selects in layer ${selecting} only.` : "";
  const where = trace.scope === "all" ? "" : ` Only ${trace.scope} links may be dropped.`;
  $("independent").textContent = "Recomputed here from the scores of the dense pass, each layer by itself:"
    + " what a lower layer drops does not change the scores of the layers above it. In the model’s run"
    + ` (${ruleName(trace.selection, trace.threshold)}) it does, so the two may differ.${only}${where}`;
  $("run-name").title = `The thresholded pass of the model: ${ruleName(trace.selection, trace.threshold)}`;
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

function buildAnswers() {
  const run = ruleName(trace.selection, trace.threshold);
  const heads = [trace.answerHeading, "dense", run];
  $("answers-heading").textContent = grounded ? "Regions" : "Answers";
  $("answers").tHead.append(make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name))));
  const sides = [trace.dense.answers, trace.thresholded.answers].map((answers) => new Map(answers));
  const names = new Set([...sides[0].keys(), ...sides[1].keys()]);
  const label = (name) => {
    const region = trace.answersAreRegions ? /^region (\d+)$/.exec(name) : null;
    return region && trace.labels[region[1]] ? `${name}: ${trace.labels[region[1]]}` : name;
  };
  const best = sides.map((side) => side.keys().next().value);
  for (const name of names) {
    const cells = sides.map((side, which) => {
      if (!side.has(name)) return make("td", { class: "none" }, "not among these");
      const probability = side.get(name);
      const bar = make("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--weight", probability ?? 0);
      return make("td", best[which] === name ? { class: "best" } : {}, percent(probability), bar);
    });
    const heading = make("th", { scope: "row", dir: "auto" }, label(name));
    $("answers").tBodies[0].append(make("tr", {}, heading, ...cells));
  }
  $("answers-note").textContent = `Of the model’s own passes, dense and with ${run}; they do not follow`
    + " the slider.";
  if (!trace.grounding.length) return;
  $("grounding").hidden = false;
  const [head, body] = [$("grounding").querySelector("thead"), $("grounding").querySelector("tbody")];
  head.append(make("tr", {}, ...["", "dense", run].map((name) => make("th", { scope: "col" }, name))));
  for (const { name, kind, cells } of trace.grounding) {
    const key = make("span", { class: `key ${kind}`, "aria-hidden": "true" });
    const heading = make("th", { scope: "row" }, key, name);
    body.append(make("tr", {}, heading, ...cells.map((text) => make("td", {}, text))));
  }
}

// ---- the whole ----------------------------------------------------------------------------------

/** What the page cannot do for this trace, or "": to select by another rule would show what is not so. */
function problem() {
  const unknown = RULES.filter((name) => !Object.hasOwn(LEAST_SCORES, name));
  if (!Object.hasOwn(trace.rules, trace.selection)) unknown.push(trace.selection);
  return unknown.length ? `This page knows no selection rule “${unknown.join("”, “")}”.` : "";
}

function start() {
  $("question").textContent = trace.text;
  $("subtitle").textContent = [trace.taskTitle, trace.checkpoint].filter(Boolean).join(" · ");
  $("legend").textContent = "Regions are as bright, and bars as long, as their weight beside the strongest"
    + ` one shown; at most ${MAX_LINKS} links are drawn.`;
  $("made").textContent = `Made by tbkin. ${attention.layerCount} layers, ${attention.headCount} heads,`
    + ` ${textLength} word pieces, ${regionCount} regions.`;
  buildTheme();
  buildWords();
  buildPicture();
  buildControls();
  buildAnswers();
  buildMap();
  recompute();
  document.addEventListener("keydown", (event) => event.key === "Escape" && release());
  const main = document.querySelector("main");
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width === width) return;
    width = entry.contentRect.width;
    render();
    if (trace.graph) buildGraph(width);
  }).observe(main);
  // Thumbnails are cut from the image, which may take longer to decode than this script to run.
  if (trace.graph) $("image").decode().then(() => buildGraph(main.clientWidth), () => {});
  document.documentElement.dataset.ready = "yes";
}

if (problem()) {
  $("problem").textContent = problem();
  $("problem").hidden = false;
  document.querySelector("main").hidden = true;
} else start();
