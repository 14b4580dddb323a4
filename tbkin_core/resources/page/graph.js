// The unified scene graph as SVG: regions, text objects with their attributes, and relations, left to right.

const THUMBNAIL = 44;
const LINE = 22;

/** A picture of a region, cut from the image. */
function thumbnail([left, top, right, bottom]) {
  const image = $("image");
  const scale = image.naturalWidth / trace.imageSize[0];
  const [width, height] = [Math.max((right - left) * scale, 1), Math.max((bottom - top) * scale, 1)];
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 2 * THUMBNAIL; // sharp on fine screens
  const fit = Math.min(canvas.width / width, canvas.height / height);
  canvas.getContext("2d").drawImage(
    image, left * scale, top * scale, width, height,
    (canvas.width - width * fit) / 2, (canvas.height - height * fit) / 2, width * fit, height * fit,
  );
  return canvas.toDataURL();
}

/** Text that is at most so many pixels wide; the whole of it shows when it is pointed at. */
function fitted(text, width, attributes) {
  const letters = Math.max(Math.floor(width / 7), 2);
  const short = text.length > letters ? `${text.slice(0, letters - 1)}…` : text;
  return draw("text", attributes, short, draw("title", {}, text));
}

function buildGraph(available) {
  if (!available) return; // a tab that is not laid out yet
  const width = Math.min(available, 860);
  const { graph, graphRegions } = trace;
  const narrow = width < 560;
  const columns = narrow
    ? { regions: 0.29 * width, objects: 0.42 * width, relations: 0.76 * width }
    : { regions: THUMBNAIL + 150, objects: 0.45 * width, relations: 0.76 * width };
  const objectWidth = columns.relations - columns.objects - (narrow ? 16 : 60);
  const relationWidth = width - columns.relations - 4;
  const gap = narrow ? 24 : 10; // on a phone, names stand below their thumbnails

  // Heights first: both sides are centred beside each other.
  const attributes = graph.objects.map((_, number) =>
    graph.attributes.filter((attribute) => attribute.object === number));
  const tall = attributes.map((list) => LINE + LINE * list.length + 14);
  const textHeight = tall.reduce((sum, one) => sum + one, 0);
  const regionsHeight = graphRegions.length * (THUMBNAIL + gap);
  const height = Math.max(textHeight, regionsHeight, graph.relations.length * (LINE + 8), 40) + 8;
  const svg = draw(
    "svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": "graph-title" },
    draw("title", { id: "graph-title" }, describeGraph()),
  );
  const edges = svg.appendChild(draw("g", { class: "edges" }));

  const objectAt = [];
  let y = (height - textHeight) / 2;
  graph.objects.forEach((object, number) => {
    const middle = y + LINE / 2 + 4;
    objectAt.push(middle);
    svg.append(
      draw("rect", {
        class: "object", x: columns.objects, y: middle - LINE / 2, width: objectWidth, height: LINE, rx: 4,
      }),
      fitted(object.name, objectWidth - 12, { x: columns.objects + 6, y: middle + 4 }),
    );
    attributes[number].forEach((attribute, place) => {
      const top = middle + LINE / 2 + 3 + place * LINE;
      const line = `M${columns.objects + 6},${middle + 8} V${top + LINE / 2 - 2} h8`;
      edges.append(draw("path", { class: "attribute", d: line }));
      svg.append(
        draw("rect", {
          class: "attribute", x: columns.objects + 14, y: top, width: objectWidth - 14, height: LINE - 4, rx: 9,
        }),
        fitted(attribute.name, objectWidth - 30, { x: columns.objects + 22, y: top + 13 }),
      );
    });
    y += tall[number];
  });

  const regionAt = new Map();
  graphRegions.forEach((region, place) => {
    const top = (height - regionsHeight) / 2 + place * (THUMBNAIL + gap) + 5;
    regionAt.set(region, top + THUMBNAIL / 2);
    const { label, box } = graph.regions[region];
    const name = `${region} ${label}`.trim();
    const group = draw("g", { class: "node" },
      // So that the gap between picture and name belongs to the region too.
      draw("rect", { class: "whole", x: 0, y: top, width: columns.regions, height: THUMBNAIL }),
      draw("image", { href: thumbnail(box), x: 0, y: top, width: THUMBNAIL, height: THUMBNAIL }),
      draw("rect", { class: "frame", x: 0.5, y: top + 0.5, width: THUMBNAIL - 1, height: THUMBNAIL - 1 }),
      narrow
        ? fitted(name, columns.regions, { x: 0, y: top + THUMBNAIL + 13 })
        : fitted(name, columns.regions - THUMBNAIL - 10, { x: THUMBNAIL + 6, y: top + THUMBNAIL / 2 + 4 }),
      draw("title", {}, name),
    );
    if (trace.graphRegionsAreRegions) {
      group.addEventListener("pointerenter", () => hover({ kind: "region", index: region }));
      group.addEventListener("pointerleave", () => hover(null));
    }
    svg.append(group);
  });

  for (const { object, region, weight } of graph.cross_edges) {
    if (!regionAt.has(region)) continue;
    const letters = `${region} ${graph.regions[region].label}`.trim().length;
    const from = narrow ? THUMBNAIL + 4 : Math.min(THUMBNAIL + 12 + 8 * letters, columns.regions);
    const to = columns.objects;
    edges.append(draw("path", {
      class: "cross", d: `M${from},${regionAt.get(region)} C${(from + to) / 2},${regionAt.get(region)} `
        + `${(from + to) / 2},${objectAt[object]} ${to},${objectAt[object]}`,
      "stroke-width": 0.5 + 4 * weight, "stroke-opacity": 0.25 + 0.65 * weight,
    }, draw("title", {}, `${graph.objects[object].name} – region ${region}: ${weight}`)));
  }

  // A relation stands between its subject and its object, with the arrow at the object.
  const middles = graph.relations.map((one) => (objectAt[one.subject] + objectAt[one.object]) / 2);
  const order = Array.from(middles.keys()).sort((first, second) => middles[first] - middles[second]);
  const places = [];
  let lowest = LINE / 2 + 2;
  for (const number of order) {
    places[number] = Math.max(middles[number], lowest);
    lowest = places[number] + LINE + 6;
  }
  const overflow = Math.max(0, lowest - LINE / 2 - 6 - height);
  graph.relations.forEach((relation, number) => {
    const at = places[number] - overflow;
    const side = columns.objects + objectWidth;
    const bend = (side + columns.relations) / 2;
    const [subject, object] = [objectAt[relation.subject], objectAt[relation.object]];
    edges.append(
      draw("path", {
        class: "relation",
        d: `M${side},${subject} C${bend},${subject} ${bend},${at} ${columns.relations},${at}`,
      }),
      draw("path", {
        class: "relation",
        d: `M${columns.relations},${at} C${bend},${at} ${bend},${object} ${side + 6},${object}`,
      }),
      draw("path", { class: "arrow", d: `M${side},${object} l8,-4 v8 z` }),
    );
    svg.append(
      draw("rect", {
        class: "relation", x: columns.relations, y: at - LINE / 2, width: relationWidth, height: LINE,
      }),
      fitted(relation.predicate, relationWidth - 10, { x: columns.relations + 5, y: at + 4 }),
    );
  });

  $("graph").replaceChildren(svg);
  $("graph-section").hidden = false;
  const left = graph.regions.length - graphRegions.length;
  $("graph-note").textContent = "Regions of the image, objects of the text with their attributes, and relations"
    + " between them; a link between a region and an object is as wide as their names are alike (by colour alone, half)."
    + (left ? ` Shown: ${graphRegions.length} of ${graph.regions.length} regions, those`
      + `${graph.cross_edges.length ? " linked," : ""} chosen or most attended.` : "")
    + (graph.cross_edges.length ? "" : " No region's label fits an object or its attributes, so nothing links them.")
    + (graph.objects.length ? "" : " The text names no object.");
}

/** The graph in words, for those who do not see it. */
function describeGraph() {
  const { graph } = trace;
  const name = (number) => graph.objects[number].name;
  const parts = [
    `Objects: ${graph.objects.map((one) => one.name).join(", ") || "none"}`,
    ...graph.attributes.map((one) => `${name(one.object)} is ${one.name}`),
    ...graph.relations.map((one) => `${name(one.subject)} ${one.predicate} ${name(one.object)}`),
    ...graph.cross_edges.map((one) => `${name(one.object)} is linked with region ${one.region}`
      + ` ${graph.regions[one.region].label} (${one.weight})`),
  ];
  return `${parts.slice(0, 40).join("; ")}.`;
}
