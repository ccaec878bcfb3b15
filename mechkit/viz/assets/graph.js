// The page: reads the payload, builds the parts once, and repaints them when the selection changes.

const DRAWN_AT_MOST = 3000;
const graph = readGraph(JSON.parse(byId("payload").textContent));

function readGraph(payload) {
  const nodes = new Map(payload.nodes.map((node) => [node.id, {...node, label: String(node.label ?? node.id)}]));
  payload.nodes = [...nodes.values()];
  // Weights into different targets have different scales; what an edge carries of the answer is comparable.
  const byWeight = [...payload.edges].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  const edges = [...byWeight].sort((a, b) => edgeSize(b) - edgeSize(a));
  const inputs = new Map(payload.nodes.map((node) => [node.id, []]));
  const outputs = new Map(payload.nodes.map((node) => [node.id, []]));
  for (const edge of byWeight) {
    inputs.get(edge.target).push(edge);
    outputs.get(edge.source).push(edge);
  }
  const supernodes = new Map();
  for (const node of payload.nodes) {
    if (node.supernode) supernodes.set(node.supernode, [...(supernodes.get(node.supernode) || []), node.id]);
  }
  const pathways = (payload.pathways || []).map((item) => ({...item, nodes: item.nodes || []}));
  const nLayers = payload.n_layers || Math.max(0, ...payload.nodes.map((node) => node.layer));
  return {payload, nodes, edges, inputs, outputs, supernodes, pathways, nLayers, categories: makeCategories(payload.nodes),
    hidden: new Set(), selection: null, nShown: clamp(Math.round(edges.length * 0.08), 40, 150), layout: null, marks: new Map()};
}

function edgeSize(edge) {
  return edge.influence ?? Math.abs(edge.weight);
}

function drawHeader() {
  const {payload} = graph;
  const tokens = payload.tokens.map((token) => html("span", {class: "token"}, visible(token)));
  const answer = payload.answer ? [html("span", {class: "arrow", "aria-label": "gives"}, "→"), html("span", {class: "token answer"}, visible(payload.answer.token)),
    isNumber(payload.answer.probability) ? html("span", {class: "probability"}, `probability ${percent(payload.answer.probability)}`) : null] : [];
  const scores = (payload.scores || []).map((score) => html("div", {class: "score"}, html("dt", {}, score.name),
    html("dd", {}, html("strong", {}, isNumber(score.value) ? score.value.toFixed(2).replace("-", "−") : number(score.value)), html("span", {}, score.meaning || ""))));
  byId("header").replaceChildren(
    html("p", {class: "kicker"}, "Attribution graph", payload.model ? ` · model ${payload.model}` : ""),
    html("h1", {"aria-label": payload.title, class: payload.tokens.length > 12 ? "long" : null}, tokens, answer),
    ...(scores.length ? [html("dl", {class: "scores"}, scores)] : []));
}

function legendButton(item) {
  const button = html("button", {type: "button", class: "legend", "aria-pressed": "true", title: "Show or hide", onclick: () => {
    setHidden(item.name, !graph.hidden.has(item.name));
  }}, glyph(item.kind, item), item.label, html("small", {}, String(item.count)));
  item.button = button;
  return button;
}

function setHidden(name, isHidden) {
  graph.hidden[isHidden ? "add" : "delete"](name);
  graph.categories.get(name).button.setAttribute("aria-pressed", String(!isHidden));
  const chosen = graph.selection?.kind === "node" ? graph.nodes.get(graph.selection.id) : null;
  if (isHidden && chosen && category(chosen) === name) select(null);
  else paint();
}

// The slider is geometric: half way is the square root of all edges, so that few can be set finely.
function edgeSlider() {
  const most = Math.min(graph.edges.length, DRAWN_AT_MOST);
  const count = (position) => (position === 0 ? 0 : Math.round(most ** position));
  const output = html("output", {for: "n-edges"});
  const say = () => output.replaceChildren(`${graph.nShown.toLocaleString("en")} of ${graph.edges.length.toLocaleString("en")}`);
  graph.nShown = Math.min(graph.nShown, most);
  const start = most > 1 ? Math.log(graph.nShown) / Math.log(most) : 1;
  const slider = html("input", {type: "range", id: "n-edges", min: 0, max: 1, step: 0.005, value: start, oninput: (event) => {
    graph.nShown = count(Number(event.target.value));
    say();
    paint();
  }});
  say();
  return html("div", {class: "edge-tools"}, html("label", {for: "n-edges"}, "Strongest edges"), slider, output,
    html("span", {class: "edge-key"}, edgeSample("positive"), "raises", edgeSample("negative"), "lowers"));
}

const edgeSample = (sign) => svg("svg", {width: 26, height: 8, "aria-hidden": "true"}, svg("path", {class: `edge lit ${sign}`, d: "M0 4H26", "stroke-width": 2.2, "stroke-dasharray": sign === "negative" ? "7 3.5" : null}));

function drawToolbar() {
  const items = [...graph.categories.values()];
  byId("toolbar").replaceChildren(html("div", {class: "legends", role: "group", "aria-label": "Show or hide nodes"}, items.map(legendButton)),
    ...(graph.edges.length ? [edgeSlider()] : []));
}

function drawNote(isWide) {
  byId("figure-note").textContent = "Prompt left to right, layers bottom to top. A larger mark has a larger share of the answer; a wider edge carries more of it to the node above."
    + (isWide ? " The figure scrolls sideways to earlier tokens." : "");
}

function table(columns, rows) {
  const isValue = (cell) => /^[−+-]?[\d.,]+/.test(String(cell));
  const cell = (value, at) => html("td", {class: at > 0 && isValue(value) ? "value" : ""}, isNumber(value) ? number(value) : String(value ?? ""));
  const head = columns ? html("thead", {}, html("tr", {}, columns.map((name, at) => html("th", {scope: "col", class: at > 0 ? "value" : ""}, String(name))))) : null;
  return html("div", {class: "table"}, html("table", {}, head, html("tbody", {}, rows.map((row) => html("tr", {}, row.map(cell))))));
}

function drawTables() {
  const {tables, made} = graph.payload;
  const cards = (tables || []).map((item) => html("section", {class: "card"}, html("h2", {}, item.title),
    item.note ? html("p", {class: "table-note"}, item.note) : null, table(item.columns, item.rows || [])));
  byId("tables").replaceChildren(...cards);
  byId("footer").replaceChildren(html("dl", {}, Object.entries(made || {}).map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, String(value))))));
}

function select(selection) {
  if (selection?.kind === "node") reveal(selection.id);
  graph.selection = selection;
  paint();
  drawPanel();
  writeHash(selection);
}

// A node chosen from a list may be filtered out or scrolled away: bring it into the figure.
function reveal(id) {
  const name = category(graph.nodes.get(id));
  if (graph.hidden.has(name)) setHidden(name, false);
  const place = graph.layout.places.get(id);
  const scroller = byId("scroller");
  if (place.x < scroller.scrollLeft + 20 || place.x > scroller.scrollLeft + scroller.clientWidth - 20) {
    scroller.scrollLeft = place.x - scroller.clientWidth / 2;
  }
  setStop(id);
}

// One mark at a time is a tab stop; the arrow keys move it.
function setStop(id) {
  for (const item of graph.marks.values()) item.setAttribute("tabindex", item.dataset.id === id ? 0 : -1);
}

function writeHash(selection) {
  const hash = selection === null ? "" : `#${selection.kind}=${encodeURIComponent(selection.id ?? selection.name ?? selection.index + 1)}`;
  try {
    history.replaceState(null, "", hash || location.pathname + location.search);
  } catch {
    // A page inside a notebook's frame has no address of its own to write.
  }
}

function readHash() {
  const [kind, text] = location.hash.slice(1).split(/=(.*)/s);
  let value;
  try {
    value = decodeURIComponent(text || "");
  } catch {
    return null;
  }
  if (kind === "node" && graph.nodes.has(value)) return {kind, id: value};
  if (kind === "group" && graph.supernodes.has(value)) return {kind, name: value};
  if (kind === "path" && graph.pathways[Number(value) - 1]) return {kind, index: Number(value) - 1};
  return null;
}

function fit() {
  const width = byId("scroller").clientWidth;
  if (graph.layout && graph.fitted === width) return;
  graph.fitted = width;
  const isFirst = graph.layout === null;
  graph.layout = layOut(graph.payload, graph.nLayers, width);
  drawFigure(graph.layout);
  drawNote(graph.layout.width > width);
  if (isFirst) byId("scroller").scrollLeft = graph.layout.width; // the answer is at the right
  setStop(graph.selection?.id ?? [...graph.layout.places.keys()].pop());
  paint();
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function onFigureKey(event) {
  const id = event.target.closest(".node")?.dataset.id;
  if (!id) return;
  if (event.key === "Enter" || event.key === " ") select({kind: "node", id});
  else if (event.key in ARROWS) moveStop(neighbour(id, ...ARROWS[event.key]));
  else return;
  event.preventDefault();
}

function moveStop(id) {
  if (!id) return;
  setStop(id);
  graph.marks.get(id).focus();
}

function listen() {
  const scroller = byId("scroller");
  const markOf = (event) => event.target.closest?.(".node")?.dataset.id;
  scroller.addEventListener("click", (event) => select(markOf(event) ? {kind: "node", id: markOf(event)} : null));
  scroller.addEventListener("keydown", onFigureKey);
  for (const name of ["pointerover", "focusin"]) {
    scroller.addEventListener(name, (event) => (markOf(event) ? showTooltip(markOf(event)) : hideTooltip()));
  }
  for (const name of ["pointerleave", "focusout", "scroll"]) scroller.addEventListener(name, hideTooltip);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hideTooltip();
    select(null);
  });
  window.addEventListener("hashchange", () => select(readHash()));
  window.addEventListener("scroll", hideTooltip, {passive: true});
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPanel);
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(scroller);
}

drawHeader();
drawToolbar();
drawTables();
fit();
select(readHash());
listen();
document.documentElement.dataset.ready = "yes";
