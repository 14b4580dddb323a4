// The map of words and regions.

let mapRows = [];
let mapColumns = [];
let mapCells = []; // [cell, the text in it, word, region]

function buildMap() {
  [mapRows, mapCells] = [[], []];
  mapColumns = Array.from({ length: regionCount }, () => []);
  $("map").replaceChildren();
  $("map-section").hidden = !wordCount || !regionCount;
  if ($("map-section").hidden) return;
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
  markScroll();
}

function connectMap() {
  $("map").addEventListener("pointerover", (event) => {
    const { word, region } = event.target.closest("[data-word], [data-region]")?.dataset ?? {};
    const mark = region && { mark: Number(region) };
    if (word !== undefined) hover({ kind: "word", index: Number(word), ...mark });
    else if (region !== undefined) hover({ kind: "region", index: Number(region) });
  });
  $("map").addEventListener("pointerleave", () => hover(null));
  $("map-scroll").addEventListener("scroll", markScroll, { passive: true });
}

/** Shade the side to which the map goes on, and say that it scrolls. */
function markScroll() {
  const { scrollLeft, scrollWidth, clientWidth } = $("map-scroll");
  const more = scrollWidth - clientWidth;
  $("map-frame").classList.toggle("more-left", scrollLeft > 1);
  $("map-frame").classList.toggle("more-right", scrollLeft < more - 1);
  $("map-scrolls").hidden = more <= 1;
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

