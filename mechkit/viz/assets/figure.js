// The figure: trays, marks and names, by position and layer. Marks are made once; the state decides where and how they show.

const PALETTE = {
  sum: "--class-1", "ones-digit lookup": "--class-2", magnitude: "--class-3", operand: "--class-4",
  modular: "--class-5", other: "--class-other",
};
const SPARE_COLOURS = ["--class-6", "--class-7", "--class-8"];
const KIND_NAMES = {
  feature: "Feature", error: "Transcoder error", token: "Token embedding", position: "Position embedding",
  bos: "First-position output", bias: "Bias", logit: "Logit", target: "Target",
};
const LEGEND_NAMES = {error: "error", token: "token", position: "position", bos: "first position", bias: "bias", logit: "logit", target: "target"};
const UNCLASSED = "feature";
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

// Shapes of radius 1; one text serves the drawing, the legend and the saved picture.
const SHAPES = {
  feature: "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z",
  error: "M0-1 1 0 0 1-1 0Z",
  token: "M-.86-.86H.86V.86H-.86Z",
  position: "M0-.95.95.75H-.95Z",
  bos: "M1 0 .5.87H-.5L-1 0-.5-.87H.5Z",
  bias: "M-1-.5H1V.5H-1Z",
  logit: "M-1-.2Q-1-.7-.5-.7H.5Q1-.7 1-.2V.2Q1 .7.5.7H-.5Q-1 .7-1 .2Z",
};
SHAPES.target = SHAPES.logit;

const mark = (kind, item) =>
  svg("path", {class: `mark in${item.colour}`, d: SHAPES[kind]});

function glyph(kind, item) {
  const shape = mark(kind, item);
  shape.setAttribute("transform", "scale(6)");
  return svg("svg", {class: "glyph", width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true"}, shape);
}

function makeMark(node) {
  const item = graph.categories.get(category(node));
  item.template ||= mark(node.kind, item);
  const shape = isTop(node) ? svg("rect", {class: "mark pill"}) : item.template.cloneNode();
  return svg("g", {class: `node ${node.kind}`, "data-id": node.id, role: "button", tabindex: -1, "aria-label": describe(node)},
    shape, isTop(node) ? svg("text", {class: "pill-text", "text-anchor": "middle", dy: "0.35em"}) : null);
}

function placeMark(item, node, place) {
  write(item, "transform", `translate(${place.x.toFixed(2)} ${place.y.toFixed(2)})`);
  const [shape, text] = item.children;
  if (place.text === null) return write(shape, "transform", `scale(${place.r.toFixed(2)})`);
  for (const [name, value] of Object.entries({x: -place.w / 2, y: -place.h / 2, width: place.w, height: place.h, rx: place.h / 2})) shape.setAttribute(name, value);
  text.textContent = place.text;
}

// Writing what is there already would have the browser work out its style again.
const write = (item, name, value) => {
  if (item.getAttribute(name) !== value) item.setAttribute(name, value);
};

const refreshMark = (node) => graph.marks.get(node.id)?.setAttribute("aria-label", describe(node));

const describe = (node) =>
  `${KIND_NAMES[node.kind]}: ${node.label}, ${whereIs(node)}${isNumber(node.influence) ? `, ${percent(node.influence)} of the answer` : ""}`;

function whereIs(node) {
  const layer = node.layer === -1 ? "embeddings" : node.layer === graph.nLayers ? "answer" : `layer ${node.layer}`;
  return isNumber(node.pos) ? `${layer}, at ‘${visible(graph.tokens[node.pos])}’ (position ${node.pos})` : layer;
}

// --- what is in the figure, and where

const isLaidOut = (node) => node.rank < graph.nNodes || graph.revealed.has(node.id);

// Lay out what the node slider keeps, and draw it. Nothing is drawn twice for one frame.
function fit() {
  const width = byId("scroller").clientWidth;
  if (width === 0) return;
  const isFirst = graph.layout === null;
  const nodes = graph.list.filter(isLaidOut);
  graph.layout = layOut(nodes, graph.tokens, graph.nLayers, width);
  graph.fitted = width;
  drawFigure(nodes);
  drawNote(graph.layout.width > width);
  if (isFirst) byId("scroller").scrollLeft = graph.layout.width; // the answer is at the right
  const stop = graph.selection?.id;
  setStop(graph.layout.places.has(stop) ? stop : [...graph.layout.places.keys()].pop());
  paint();
}

function drawFigure(nodes) {
  const {width, height, bottom, columns, rows, trays, places} = graph.layout;
  const rules = rows.map((row) => svg("line", {class: "rule", x1: 0, x2: width, y1: row.y + row.h / 2, y2: row.y + row.h / 2}));
  const cells = trays.map((tray) => svg("rect", {class: "tray", x: tray.x, y: tray.y, width: tray.w, height: tray.h, rx: 9}));
  for (const node of nodes) {
    if (!graph.marks.has(node.id)) graph.marks.set(node.id, makeMark(node));
    placeMark(graph.marks.get(node.id), node, places.get(node.id));
  }
  byId("back").replaceChildren(svg("rect", {class: "backdrop", width, height}), ...rules, ...cells);
  swapMarks(new Set(nodes));
  byId("names").replaceChildren(...columns.map((column) => columnName(column, bottom)));
  for (const item of [byId("under"), byId("drawing")]) {
    item.setAttribute("width", width);
    item.setAttribute("height", height);
  }
  byId("stage").style.setProperty("width", `${width}px`);
  byId("stage").style.setProperty("height", `${height}px`);
  const layers = thinned(rows);
  byId("row-names").replaceChildren(...layers.map((row) => html("div", {css: {top: `${row.y + row.h / 2}px`}}, row.name)));
  byId("row-names").style.setProperty("height", `${height}px`);
}

// Only marks that come or go are touched; those that stay keep their focus and their style.
function swapMarks(nodes) {
  for (const node of graph.placed) if (!nodes.has(node)) graph.marks.get(node.id).remove();
  byId("nodes").append(...[...nodes].filter((node) => !graph.placed.has(node)).map((node) => graph.marks.get(node.id)));
  graph.placed = nodes;
}

// Names of rows that are too close are left out.
function thinned(rows) {
  const kept = [];
  for (const row of rows) if (kept.length === 0 || row.y + row.h / 2 - kept.at(-1).y - kept.at(-1).h / 2 > 17) kept.push(row);
  return kept;
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

// --- what is lit

// Which nodes and edges the selection lights; null where nothing is selected.
function focusOf(selection) {
  if (selection === null) return null;
  if (selection.kind === "node") {
    const node = graph.nodes.get(selection.id);
    const near = [node.outputs.slice(0, 3).map((edge) => edge.to.id), node.inputs.slice(0, 3).map((edge) => edge.from.id)];
    return {...around([node]), named: [node.id, ...near.flat()]};
  }
  const nodes = selectedIds().map((id) => graph.nodes.get(id));
  if (selection.kind !== "path") return {...around(nodes), named: nodes.map((node) => node.id)};
  const ids = new Set(selectedIds());
  const edges = graph.edges.filter((edge) => ids.has(edge.from.id) && ids.has(edge.to.id));
  return {ids, edges: new Set(edges), named: [...ids]};
}

function around(nodes) {
  const edges = new Set(nodes.flatMap((node) => [...node.inputs, ...node.outputs]));
  const ids = new Set(nodes.map((node) => node.id));
  for (const edge of edges) ids.add(edge.from.id).add(edge.to.id);
  return {ids, edges};
}

function paint() {
  for (const node of graph.list) node.isShown = isLaidOut(node) && !graph.hidden.has(category(node));
  const focus = focusOf(graph.selection);
  graph.focus = focus;
  paintMarks();
  graph.drawn = chooseEdges(focus);
  drawEdges();
  const isShown = (id) => graph.nodes.get(id).isShown;
  byId("labels").replaceChildren(...(focus === null ? [] : drawLabels([...new Set(focus.named)].filter(isShown), [...focus.ids].filter(isShown))));
}

function paintMarks() {
  const {focus, selection} = graph;
  const chosen = new Set(selection?.kind === "node" || selection?.kind === "many" ? selectedIds() : []);
  for (const [id, item] of graph.marks) {
    const node = graph.nodes.get(id);
    const look = `node ${node.kind}${node.isShown ? "" : " off"}${focus === null ? "" : focus.ids.has(id) ? " lit" : " faded"}`
      + `${chosen.has(id) ? " chosen" : ""}${graph.pinned.has(id) ? " pinned" : ""}${graph.matches.has(id) ? " match" : ""}`;
    if (look === node.look) continue;
    node.look = look;
    item.setAttribute("class", look);
  }
}

// A name beside each lit feature where there is room: never over a lit mark or another name, and over
// a faded mark only where nothing else is free.
function drawLabels(names, lit) {
  const {places, width, bottom} = graph.layout;
  const taken = lit.map((id) => boxAround(places.get(id), 1));
  const every = [...places.values()].map((place) => boxAround(place, 0));
  const labels = [];
  for (const id of names.slice(0, 24)) {
    const node = graph.nodes.get(id);
    if (["token", "position", "logit", "target"].includes(node.kind)) continue;
    const text = shorten(node.label, LABEL_WIDTH, FONT);
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
    if (other === id || !graph.nodes.get(other).isShown) continue;
    const along = (place.x - from.x) * dx + (place.y - from.y) * dy;
    const across = Math.abs((place.x - from.x) * dy) + Math.abs((place.y - from.y) * dx);
    if (along > 0.5 && (best === null || along + 2 * across < best.cost)) best = {id: other, cost: along + 2 * across};
  }
  return best && best.id;
}

// --- the tip beside the pointer

function showTip(box, ...lines) {
  const tip = byId("tooltip");
  tip.replaceChildren(...lines.filter(Boolean));
  tip.hidden = false;
  const x = clamp(box.left + box.width / 2 - tip.offsetWidth / 2, 8, innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.setProperty("left", `${x}px`);
  tip.style.setProperty("top", `${above > 8 ? above : box.bottom + 8}px`);
}

function showTooltip(id) {
  const node = graph.nodes.get(id);
  showTip(graph.marks.get(id).getBoundingClientRect(), html("strong", {}, node.label),
    html("span", {}, `${KIND_NAMES[node.kind]}${node.class ? ` (${node.class})` : ""}, ${whereIs(node)}`),
    isNumber(node.influence) ? html("span", {}, `${percent(node.influence)} of the answer`) : null);
}

function showEdgeTip(edge, x, y) {
  showTip({left: x, width: 0, top: y - 6, bottom: y + 12}, html("strong", {}, `${edge.from.label} → ${edge.to.label}`),
    html("span", {}, `contributes ${signed(edge.weight)}`), edge.heads?.length ? html("span", {}, `carried by ${headText(edge.heads)}`) : null);
}

const hideTooltip = () => { byId("tooltip").hidden = true; };
