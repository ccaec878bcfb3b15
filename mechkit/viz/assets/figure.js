// The drawing: trays, edges, marks, names. One SVG; the state decides what is faded.

const PALETTE = {
  sum: "--class-1", "ones-digit lookup": "--class-2", magnitude: "--class-3", operand: "--class-4",
  modular: "--class-5", other: "--class-other",
};
const SPARE_COLOURS = ["--class-6", "--class-7", "--class-8"];
const KIND_NAMES = {
  feature: "Feature", error: "Transcoder error", token: "Token embedding", position: "Position embedding",
  bos: "First-position output", bias: "Bias", logit: "Logit",
};
const LEGEND_NAMES = {error: "error", token: "token", position: "position", bos: "first position", bias: "bias", logit: "logit"};
const UNCLASSED = "feature without class";
const LABEL_WIDTH = 190;

const category = (node) => (node.kind === "feature" ? node.class || UNCLASSED : `kind ${node.kind}`);

// Name → colour variable and whether the mark is hollow, in the order in which the legend lists them.
function makeCategories(nodes) {
  const found = new Map();
  for (const node of nodes) {
    const name = category(node);
    if (!found.has(name)) found.set(name, {name, kind: node.kind, label: LEGEND_NAMES[node.kind] || name, count: 0});
    found.get(name).count += 1;
  }
  const spare = [...SPARE_COLOURS];
  for (const item of found.values()) {
    const known = PALETTE[item.name];
    item.colour = item.kind !== "feature" ? `--kind-${item.kind}` : known || (item.name === UNCLASSED ? "--class-none" : spare.shift() || "--class-other");
    item.hollow = item.colour === "--class-other";
  }
  const order = (item) => (item.kind === "feature" ? Object.keys(PALETTE).indexOf(item.name) + (item.name in PALETTE ? 0 : 50) : 100 + Object.keys(KIND_NAMES).indexOf(item.kind));
  return new Map([...found.values()].sort((a, b) => order(a) - order(b)).map((item) => [item.name, item]));
}

function polygon(points, r) {
  return svg("polygon", {points: points.map(([x, y]) => `${(x * r).toFixed(2)},${(y * r).toFixed(2)}`).join(" ")});
}

const SHAPES = {
  feature: (r) => svg("circle", {r}),
  error: (r) => polygon([[0, -1], [1, 0], [0, 1], [-1, 0]], r),
  token: (r) => svg("rect", {x: -r * 0.86, y: -r * 0.86, width: r * 1.72, height: r * 1.72, rx: 1.5}),
  position: (r) => polygon([[0, -0.95], [0.95, 0.75], [-0.95, 0.75]], r),
  bos: (r) => polygon([[1, 0], [0.5, 0.87], [-0.5, 0.87], [-1, 0], [-0.5, -0.87], [0.5, -0.87]], r),
  bias: (r) => svg("rect", {x: -r, y: -r * 0.5, width: 2 * r, height: r, rx: 1.5}),
  logit: (r) => svg("rect", {x: -r, y: -r * 0.7, width: 2 * r, height: r * 1.4, rx: r * 0.7}),
};

function mark(kind, r, item) {
  const shape = SHAPES[kind](r);
  shape.classList.add("mark");
  shape.style.setProperty("fill", item.hollow ? "var(--card)" : `var(${item.colour})`);
  shape.style.setProperty("stroke", item.hollow ? `var(${item.colour})` : "var(--mark-edge)");
  return shape;
}

const glyph = (kind, item, r = 6) =>
  svg("svg", {class: "glyph", width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true"}, mark(kind, r, item));

function drawNode(node, place, item) {
  const shape = place.text === null ? mark(node.kind, place.r, item) : pill(place, item);
  const text = place.text === null ? null : svg("text", {class: "pill-text", "text-anchor": "middle", dy: "0.35em"}, place.text);
  return svg("g", {
    class: `node ${node.kind}`, "data-id": node.id, role: "button", tabindex: -1, "aria-label": describe(node),
    transform: `translate(${place.x.toFixed(2)} ${place.y.toFixed(2)})`,
  }, shape, text);
}

function pill(place, item) {
  const shape = mark("logit", place.r, item);
  for (const [name, value] of Object.entries({x: -place.w / 2, y: -place.h / 2, width: place.w, height: place.h, rx: place.h / 2})) {
    shape.setAttribute(name, value);
  }
  return shape;
}

const describe = (node) =>
  `${KIND_NAMES[node.kind]}: ${node.label}, ${whereIs(node)}${isNumber(node.influence) ? `, ${percent(node.influence)} of the answer` : ""}`;

function whereIs(node) {
  const layer = node.layer === -1 ? "embeddings" : node.layer === graph.nLayers ? "logits" : `layer ${node.layer}`;
  return isNumber(node.pos) ? `${layer}, at ‘${visible(graph.payload.tokens[node.pos])}’ (position ${node.pos})` : layer;
}

// From the top of the source up to the foot of the target; within a layer, from foot to foot below the row.
function edgePath(edge) {
  const from = graph.layout.places.get(edge.source);
  const to = graph.layout.places.get(edge.target);
  const isUp = graph.nodes.get(edge.source).layer < graph.nodes.get(edge.target).layer;
  const y0 = from.y + (isUp ? -from.h : from.h) / 2;
  const y1 = to.y + to.h / 2;
  const pull = isUp ? Math.max(26, (y0 - y1) * 0.45) : 34 + Math.abs(from.x - to.x) * 0.08;
  const points = [[from.x, y0], [from.x, isUp ? y0 - pull : y0 + pull], [to.x, y1 + pull], [to.x, y1]];
  const [start, ...rest] = points.map((point) => point.map((value) => value.toFixed(1)).join(" "));
  return `M${start}C${rest.join(" ")}`;
}

// Widths go by the strongest edge drawn; the lit ones of a selection by the strongest of these.
function drawEdges(edges, focus) {
  const largest = (some) => some.reduce((most, edge) => Math.max(most, edgeSize(edge)), 0) || 1;
  const lit = edges.filter((edge) => focus?.edges.has(edge));
  const scales = {lit: largest(lit), faded: largest(edges), plain: largest(edges)};
  return edges.map((edge) => {
    const look = focus === null ? "plain" : focus.edges.has(edge) ? "lit" : "faded";
    const width = 0.7 + 4.3 * edgeSize(edge) / scales[look];
    const isNegative = edge.weight < 0;
    return svg("path", {class: `edge ${isNegative ? "negative" : "positive"} ${look}`, d: edgePath(edge), "stroke-width": width.toFixed(2),
      "stroke-dasharray": isNegative ? `${(4 + 1.8 * width).toFixed(1)} ${(2.4 + 0.7 * width).toFixed(1)}` : null});
  });
}

function drawFigure(layout) {
  const {width, height, bottom, columns, rows, trays, places} = layout;
  const names = columns.map((column) => columnName(column, bottom));
  const rules = rows.map((row) => svg("line", {class: "rule", x1: 0, x2: width, y1: row.y + row.h / 2, y2: row.y + row.h / 2}));
  const cells = trays.map((tray) => svg("rect", {class: "tray", x: tray.x, y: tray.y, width: tray.w, height: tray.h, rx: 9}));
  const marks = graph.payload.nodes.map((node) => drawNode(node, places.get(node.id), graph.categories.get(category(node))));
  graph.marks = new Map(marks.map((item) => [item.dataset.id, item]));
  const root = svg("svg", {id: "drawing", width, height, role: "group", "aria-label": "Nodes by position and layer"},
    svg("rect", {class: "backdrop", width, height}), rules, cells,
    svg("g", {id: "edges"}), svg("g", {id: "nodes"}, marks), svg("g", {id: "labels"}), names);
  byId("scroller").replaceChildren(root);
  byId("row-names").replaceChildren(...rows.map((row) => html("div", {css: {top: `${row.y + row.h / 2}px`}}, row.name)));
  byId("row-names").style.setProperty("height", `${height}px`);
}

function columnName(column, bottom) {
  const x = column.x + column.w / 2;
  const isBias = column.key === BIAS;
  return svg("g", {class: "column-name"},
    svg("title", {}, isBias ? "Biases of the model, from its parameters" : `${column.token} (position ${column.key})`),
    svg("text", {class: isBias ? "bias-name" : "token-name", x, y: bottom + 22, "text-anchor": "middle"},
      isBias ? column.token : shorten(column.token, column.w - 2, MONO)),
    isBias ? null : svg("text", {class: "token-place", x, y: bottom + 38, "text-anchor": "middle"}, String(column.key)));
}

// Which nodes and edges the selection lights; null where nothing is selected.
function focusOf(selection) {
  if (selection === null) return null;
  if (selection.kind === "node") {
    const edges = [...graph.inputs.get(selection.id), ...graph.outputs.get(selection.id)];
    const ids = new Set([selection.id, ...edges.flatMap((edge) => [edge.source, edge.target])]);
    const near = [graph.outputs, graph.inputs].flatMap((side) => side.get(selection.id).slice(0, 3));
    return {ids, edges: new Set(edges), named: [selection.id, ...near.flatMap((edge) => [edge.source, edge.target])]};
  }
  const ids = new Set(selection.kind === "path" ? graph.pathways[selection.index].nodes : graph.supernodes.get(selection.name));
  const edges = graph.edges.filter((edge) => ids.has(edge.source) && ids.has(edge.target));
  return {ids, edges: new Set(edges), named: [...ids]};
}

function paint() {
  const focus = focusOf(graph.selection);
  const shown = (id) => !graph.hidden.has(category(graph.nodes.get(id)));
  for (const [id, item] of graph.marks) {
    item.classList.toggle("off", !shown(id));
    item.classList.toggle("faded", focus !== null && !focus.ids.has(id));
    item.classList.toggle("lit", focus !== null && focus.ids.has(id));
    item.classList.toggle("chosen", graph.selection?.kind === "node" && graph.selection.id === id);
  }
  const visibleEdge = (edge) => shown(edge.source) && shown(edge.target);
  const usual = graph.edges.filter(visibleEdge).slice(0, graph.nShown);
  const extra = focus === null ? [] : [...focus.edges].filter(visibleEdge);
  const drawn = [...usual.filter((edge) => !focus?.edges.has(edge)), ...extra];
  byId("edges").replaceChildren(...drawEdges(drawn.reverse(), focus));
  byId("labels").replaceChildren(...(focus === null ? [] : drawLabels([...new Set(focus.named)].filter(shown), focus.ids)));
}

// A name beside each lit feature where there is room: never over a lit mark or another name, and over
// a faded mark only where nothing else is free.
function drawLabels(names, lit) {
  const {places, width, bottom} = graph.layout;
  const taken = [...lit].map((id) => boxAround(places.get(id), 1));
  const every = [...places.values()].map((place) => boxAround(place, 0));
  const labels = [];
  for (const id of names) {
    if (["token", "position", "logit"].includes(graph.nodes.get(id).kind)) continue;
    const text = shorten(graph.nodes.get(id).label, LABEL_WIDTH, FONT);
    const boxes = labelSpots(places.get(id), textWidth(text, FONT) + 12)
      .filter((b) => b.x0 >= 2 && b.x1 <= width - 2 && b.y0 >= 2 && b.y1 <= bottom + 12 && !taken.some((other) => meet(b, other)));
    const box = boxes.find((b) => !every.some((other) => meet(b, other))) || boxes[0];
    if (!box) continue;
    taken.push(box);
    labels.push(drawLabel(box, text));
  }
  return labels;
}

function labelSpots(place, w) {
  const up = -place.h / 2 - 13;
  const side = place.w / 2 + w / 2 + 3;
  const lean = w / 2 - 8;
  const spots = [[side, 0], [-side, 0], [0, up], [0, -up], [lean, up], [-lean, up], [lean, -up], [-lean, -up], [0, up - 8], [0, 8 - up]];
  return spots.map(([dx, dy]) => boxAround({x: place.x + dx, y: place.y + dy, w, h: 20}, 1));
}

const drawLabel = (box, text) => svg("g", {class: "label"},
  svg("rect", {x: box.x0 + 1, y: box.y0 + 1, width: box.x1 - box.x0 - 2, height: box.y1 - box.y0 - 2, rx: 5}),
  svg("text", {x: (box.x0 + box.x1) / 2, y: (box.y0 + box.y1) / 2, "text-anchor": "middle", dy: "0.35em"}, text));

const boxAround = ({x, y, w, h}, room) => ({x0: x - w / 2 - room, x1: x + w / 2 + room, y0: y - h / 2 - room, y1: y + h / 2 + room});
const meet = (a, b) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;

// The next node in the direction of an arrow key: the nearest, with sideways distance counting double.
function neighbour(id, dx, dy) {
  const from = graph.layout.places.get(id);
  let best = null;
  for (const [other, place] of graph.layout.places) {
    if (other === id || graph.marks.get(other).classList.contains("off")) continue;
    const along = (place.x - from.x) * dx + (place.y - from.y) * dy;
    const across = Math.abs((place.x - from.x) * dy) + Math.abs((place.y - from.y) * dx);
    if (along > 0.5 && (best === null || along + 2 * across < best.cost)) best = {id: other, cost: along + 2 * across};
  }
  return best && best.id;
}

function showTooltip(id) {
  const node = graph.nodes.get(id);
  const box = graph.marks.get(id).getBoundingClientRect();
  const tip = byId("tooltip");
  tip.replaceChildren(html("strong", {}, node.label), html("span", {}, `${KIND_NAMES[node.kind]}${node.class ? ` (${node.class})` : ""}, ${whereIs(node)}`),
    isNumber(node.influence) ? html("span", {}, `${percent(node.influence)} of the answer`) : "");
  tip.hidden = false;
  const x = clamp(box.left + box.width / 2 - tip.offsetWidth / 2, 8, innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.setProperty("left", `${x}px`);
  tip.style.setProperty("top", `${above > 8 ? above : box.bottom + 8}px`);
}

const hideTooltip = () => { byId("tooltip").hidden = true; };
