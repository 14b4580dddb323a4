// The page itself. Text of the trace only ever becomes text nodes and attributes, never HTML.

const $ = (id) => document.getElementById(id);
const MAX_LINKS = 12;
const LABELLED = 3;

// What is shown: a trace, and the scores of its dense pass and of its thresholded one, the latter -Infinity
// where a key was dropped. `attention` is the one of them that is drawn from. `show` sets them all.
let trace, dense, run, attention;
let wordCount, regionCount, textLength, rules;
const state = {
  rule: "",
  // The last threshold of each rule, so that going back to a rule goes back to it. 0 is dense.
  thresholds: {},
  layer: 0,
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
const canTry = (rule) => trace.rules[rule].symbol !== "";
const grounded = () => trace.thresholded.chosen !== null;

/** A selection in words, as figures have it: "relative, τ = 0.3", "top 4 keys". */
function ruleName(name, value) {
  const rule = trace.rules[name];
  const words = rule.phrase.replace("{name}", name).replace("{threshold}", Number(value.toPrecision(6)));
  return rule.unit ? `${words} ${rule.unit}${value === 1 ? "" : "s"}` : words;
}

/** Which pass of the model the view is of, as the figure shows it; "" where no pass had this threshold. */
function passShown() {
  if (threshold() === 0) return "dense";
  return state.rule === trace.selection && threshold() === trace.threshold ? "thresholded" : "";
}

/** The pass whose answers and boxes belong to the view. */
const passBeside = () => (passShown() === "dense" ? "dense" : "thresholded");

/** The row that the answer is read from, as in the figures: [CLS], or what a grounding chose. */
function answerRow() {
  const { chosen } = trace[passBeside()];
  return chosen === null ? 0 : textLength + chosen;
}

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
  // A pass of the model has dropped its keys already; any other threshold is tried on the dense scores.
  attention = passShown() === "thresholded" ? run : dense;
  // A rule without a threshold cannot be tried: until the model has answered by it all keys are kept.
  if (attention === dense) dense.select(...(canTry(state.rule) ? [state.rule, threshold()] : ["relative", 0]));
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
  renderPass();
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
  const row = answerRow() * attention.length;
  for (let region = 0; region < regionCount; region++) regions[region] = weights[row + textLength + region];
  trace.wordIds.forEach((word, piece) => {
    if (word >= 0) words[word] += weights[row + piece];
  });
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const { chosen } = trace[passBeside()];
  const reader = chosen === null ? "[CLS]" : `the chosen region ${regionName(chosen)}`;
  let text = `The answer is read from ${reader}: `;
  if (!strongest(regions, 1).length) text += "none of its attention is on regions";
  else text += `${percent(sum(regions))} of its attention is on regions (most: ${listed(regions, regionName)})`;
  text += `, ${percent(sum(words))} on words`;
  if (strongest(words, 1).length) text += ` (most: ${listed(words, quoted)})`;
  return { regions, words, text: `${text}.` };
}

// ---- drawing what is shown ----------------------------------------------------------------------

let sources = []; // buttons with their source: the answer, the words, the regions
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
  const beside = trace[passBeside()];
  const named = grounded() ? [beside.chosen, beside.runnerUp] : [];
  const names = [
    ...beside.boxes.map(({ name, box, kind }) => [name, box, kind]),
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
    const sheet = $("links").getBoundingClientRect();
    const centre = (kind, index) => {
      const box = sourceOf(kind, index).getBoundingClientRect();
      const x = box.left + box.width / 2 - sheet.left;
      return [x, (kind === "word" ? box.bottom : box.top + box.height / 2) - sheet.top];
    };
    const other = source.kind === "word" ? "region" : "word";
    const values = source.kind === "word" ? current.regions : current.words;
    const highest = Math.max(...values, 0);
    const from = centre(source.kind, source.index);
    // A line to a word that has left the window, while the picture stays, would lead nowhere.
    const stays = getComputedStyle($("picture")).position === "sticky";
    const isGone = (word) => stays && sourceOf("word", word).getBoundingClientRect().bottom < 0;
    for (const place of strongest(values, MAX_LINKS)) {
      if (isGone(source.kind === "word" ? source.index : place)) continue;
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

/** Entries kept now, and entries that the dense pass has, by direction and in "all". */
function counted(layer, head) {
  const [kept, there] = [attention.counts(layer, head), dense.counts(layer, head)];
  return Object.fromEntries(Object.keys(kept).map((name) => [name, [kept[name][0], there[name][1]]]));
}

function renderKept() {
  const isRollout = state.layer === "rollout";
  const all = counted(null, null);
  const here = isRollout ? all : counted(state.layer, state.head);
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
  const answer = make("button", { type: "button", class: "word answer" }, make("span", { id: "reader" }));
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

let scrimHoles = [];

function buildPicture() {
  const [width, height] = trace.imageSize;
  $("image").alt = `The image, ${width} × ${height} pixels, with ${regionCount} regions`
    + (trace.labels.some(Boolean) ? `: ${trace.labels.filter(Boolean).slice(0, 12).join(", ")}` : "");
  const { style } = $("picture");
  style.aspectRatio = `${width} / ${height}`;
  style.setProperty("--ratio", width / height); // its height stays below a share of the window's
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
}

/** A box as parts of the picture. */
function percentOf(box) {
  const [width, height] = trace.imageSize;
  return {
    left: `${(100 * box[0]) / width}%`, top: `${(100 * box[1]) / height}%`,
    width: `${(100 * (box[2] - box[0])) / width}%`, height: `${(100 * (box[3] - box[1])) / height}%`,
  };
}

/** The boxes of a grounding, and what the answer is read from: of the pass that the view is of. */
function renderPass() {
  const { chosen, boxes } = trace[passBeside()];
  $("reader").textContent = chosen === null ? "answer [CLS]" : `chosen: ${regionName(chosen)}`;
  $("grounding-boxes").replaceChildren(...boxes.map(({ kind, box }) => {
    const frame = make("span", { class: `grounding ${kind}` });
    Object.assign(frame.style, percentOf(box));
    return frame;
  }));
  renderView();
}

function connectPicture() {
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

// ---- the whole ----------------------------------------------------------------------------------

/** What the page cannot do for this trace, or "": to select by another rule would show what is not so. */
function problem() {
  const named = Object.keys(trace.rules).filter((name) => trace.rules[name].symbol);
  const unknown = named.filter((name) => !Object.hasOwn(LEAST_SCORES, name));
  if (!Object.hasOwn(trace.rules, trace.selection)) unknown.push(trace.selection);
  return unknown.length ? `This page knows no selection rule “${unknown.join("”, “")}”.` : "";
}

/** What `figures/page.py` makes of a trace: the trace as JSON, and its scores in base64. */
function read(content) {
  trace = content.trace;
  const made = (scores) => new Attention(
    decodeHalfFloats(scores), trace.shape, trace.pieces.length, trace.scope, trace.layers,
  );
  dense = made(content.scores);
  run = made(content.run || content.scores);
  attention = dense;
  dense.select("relative", 0);
  run.select("relative", 0); // what it dropped has no score any more
}

/** Show a trace in the place of whatever is shown; false, with a message, where the page cannot. */
function show(content) {
  read(content);
  const fault = problem();
  $("problem").textContent = fault;
  $("problem").hidden = !fault;
  document.querySelector("main").hidden = Boolean(fault);
  if (fault) return false;
  [wordCount, regionCount, textLength] = [trace.words.length, trace.boxes.length, trace.pieces.length];
  // A transform in the softmax's place has no threshold to try; the view of its own pass is the only one.
  rules = Object.keys(trace.rules).filter((name) => trace.rules[name].symbol || name === trace.selection);
  Object.assign(state, {
    rule: trace.selection,
    thresholds: {
      ...Object.fromEntries(rules.map((name) => [name, trace.rules[name].usual])),
      [trace.selection]: trace.threshold,
    },
    layer: trace.view.layer ?? (trace.view.aggregate === "rollout" ? "rollout" : dense.layerCount - 1),
    head: trace.view.head,
    pinned: null,
    hovered: null,
  });
  [sources, scrimHoles] = [[], []];
  for (const id of ["words", "regions", "scrim", "links", "region-names", "graph"]) $(id).replaceChildren();
  $("graph-section").hidden = true;
  $("question").textContent = trace.text;
  $("subtitle").textContent = [trace.taskTitle, trace.checkpoint].filter(Boolean).join(" · ");
  $("legend").textContent = "Regions are as bright, and bars as long, as their weight beside the strongest"
    + ` one shown; at most ${MAX_LINKS} links are drawn.`;
  $("made").textContent = `Made by tbkin. ${dense.layerCount} layers, ${dense.headCount} heads,`
    + ` ${textLength} word pieces, ${regionCount} regions.`;
  buildWords();
  buildPicture();
  buildControls();
  buildAnswers();
  buildMap();
  recompute();
  // Thumbnails are cut from the image, which may take longer to decode than this script to run.
  const shownNow = trace;
  const drawGraph = () => shownNow === trace && buildGraph(document.querySelector("main").clientWidth);
  if (trace.graph) $("image").decode().then(drawGraph, () => {});
  return true;
}

/** The model's pass at another threshold, of the same image and text: what is pinned or chosen stays. */
function update(content) {
  read(content);
  buildAnswers();
  recompute();
}

function start() {
  buildTheme();
  connectPicture();
  connectControls();
  connectMap();
  document.addEventListener("keydown", (event) => event.key === "Escape" && trace && release());
  // On a phone the picture stays while the words go, and with them the links between the two.
  let scrolled = false;
  addEventListener("scroll", () => {
    if (scrolled || !trace) return;
    scrolled = true;
    requestAnimationFrame(() => {
      scrolled = false;
      renderLinks(state.hovered ?? state.pinned ?? { kind: "answer" });
    });
  }, { passive: true });
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (!trace || entry.contentRect.width === width) return;
    width = entry.contentRect.width;
    render();
    markScroll();
    if (trace.graph) buildGraph(width);
  }).observe(document.querySelector("main"));
  const content = Object.fromEntries(["trace", "scores", "run"].map((id) => [id, $(id).textContent]));
  content.trace = JSON.parse(content.trace);
  // The page of a server has nothing to show yet; its own script goes on.
  if (content.trace !== null && show(content)) document.documentElement.dataset.ready = "yes";
}

start();
