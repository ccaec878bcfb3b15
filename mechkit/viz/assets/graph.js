// The page: reads the document, builds the parts once, and repaints them when the selection or a slider changes.

const graph = readGraph(JSON.parse(byId("payload").textContent));

function drawHeader() {
  const {tokens, more} = graph;
  graph.answer = graph.list.filter((node) => node.kind === "logit").sort((a, b) => (b.probability || 0) - (a.probability || 0))[0] || null;
  const words = tokens.map((token) => html("span", {class: "token"}, visible(token)));
  const {answer} = graph;
  const gives = answer ? [html("span", {class: "arrow", "aria-label": "gives"}, "→"), html("span", {class: "token answer"}, visible(answer.name || answer.label)),
    isNumber(answer.probability) ? html("span", {class: "probability"}, `probability ${percent(answer.probability)}`) : null] : [];
  const known = Object.entries(more.scores || {}).filter(([, value]) => isNumber(value));
  const scores = known.map(([name, value]) => html("div", {class: "score"}, html("dt", {}, name),
    html("dd", {}, html("strong", {}, value.toFixed(2).replace("-", "−")), html("span", {}, SCORE_MEANINGS[name] || ""))));
  const model = graph.source.metadata.scan;
  byId("header").replaceChildren(
    html("div", {class: "top-row"}, html("p", {class: "kicker"}, "Attribution graph", model ? ` · model ${model}` : ""),
      html("div", {class: "tools"}, searchBox(), html("button", {type: "button", class: "tool", id: "save-json", onclick: saveJson}, "Save JSON"),
        html("button", {type: "button", class: "tool", id: "save-png", onclick: savePng}, "Save PNG"))),
    html("h1", {"aria-label": graph.title, class: tokens.length > 12 ? "long" : null}, words, gives),
    ...(scores.length ? [html("dl", {class: "scores"}, scores)] : []));
}

const drawSaveState = () => byId("save-json").classList.toggle("changed", graph.isChanged);

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

// A slider is geometric: half way is the square root of all, so that few can be set finely.
function slider(id, name, most, value, change) {
  const count = (position) => (position === 0 ? 0 : Math.round(most ** position));
  const output = html("output", {for: id});
  const tell = (n) => output.replaceChildren(`${n.toLocaleString("en")} of ${most.toLocaleString("en")}`);
  const start = most > 1 ? Math.log(Math.max(value, 1)) / Math.log(most) : 1;
  tell(value);
  return html("div", {class: "edge-tools"}, html("label", {for: id}, name), html("input", {type: "range", id, min: 0, max: 1, step: 0.005, value: start, oninput: (event) => {
    const n = count(Number(event.target.value));
    event.target.setAttribute("aria-valuetext", `${n} of ${most}`);
    tell(n);
    change(n);
  }}), output);
}

function drawToolbar() {
  const items = [...graph.categories.values()];
  const nodes = graph.nPrunable < 2 ? null : slider("n-nodes", "Strongest nodes", graph.nPrunable, graph.nNodes, (n) => {
    graph.nNodes = n;
    graph.revealed.clear();
    soon(fit);
  });
  const edges = graph.edges.length === 0 ? null : slider("n-edges", "Strongest edges", graph.edges.length, graph.nEdges, (n) => {
    graph.nEdges = n;
    soon(paint);
  });
  const key = () => [edgeSample("positive"), "raises", edgeSample("negative"), "lowers"];
  byId("toolbar").replaceChildren(html("div", {class: "legends", role: "group", "aria-label": "Show or hide nodes"}, items.map(legendButton)),
    ...[nodes, edges].filter(Boolean), html("span", {class: "edge-key"}, key()));
  byId("subgraph-key").replaceChildren("In a box and by width: share of the answer. On an edge: the heads that carry it.");
  byId("unpin-all").addEventListener("click", () => {
    graph.pinned.clear();
    changed("All nodes unpinned");
    redraw();
  });
}

const edgeSample = (sign) => svg("svg", {width: 26, height: 8, "aria-hidden": "true"}, svg("path", {class: `sample ${sign}`, d: "M0 4H26", "stroke-width": 2.2, "stroke-dasharray": sign === "negative" ? "7 3.5" : null}));

// Several changes within one frame are one change.
const waiting = new Set();
function soon(act) {
  if (waiting.has(act)) return;
  waiting.add(act);
  requestAnimationFrame(() => {
    waiting.delete(act);
    act();
  });
}

function drawNote(isWide) {
  byId("figure-note").textContent = "Prompt left to right, layers bottom to top. A larger mark has a larger share of the answer; a wider edge carries more of it to the node above."
    + (isWide ? " The figure scrolls sideways to earlier tokens." : "");
}

function table(columns, rows) {
  const isValue = (cell) => /^[−+-]?[\d.,]+/.test(String(cell));
  const cell = (value, at) => html("td", {class: at > 0 && isValue(value) ? "value" : ""}, isNumber(value) ? number(value) : String(value ?? ""));
  const isValues = (at) => at > 0 && rows.every((row) => isValue(row[at]) || row[at] === "–");
  const head = columns ? html("thead", {}, html("tr", {}, columns.map((name, at) => html("th", {scope: "col", class: isValues(at) ? "value" : ""}, String(name))))) : null;
  return html("div", {class: "table"}, html("table", {}, head, html("tbody", {}, rows.map((row) => html("tr", {}, row.map(cell))))));
}

function drawTables() {
  const {tables, made} = graph.more;
  const cards = (tables || []).map((item) => html("section", {class: "card"}, html("h2", {}, String(item.title)),
    item.note ? html("p", {class: "table-note"}, item.note) : null, table(item.columns, item.rows || [])));
  byId("tables").replaceChildren(...cards);
  const facts = Object.entries(made || {}).filter(([name, value]) => value && name !== "tokens" && name !== "prompt");
  byId("footer").replaceChildren(html("dl", {}, facts.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, String(value))))));
}

// --- the selection

function select(selection) {
  if (selection?.kind === "node") reveal(selection.id);
  graph.selection = selection;
  redraw();
  writeHash(selection);
}

function redraw() {
  paint();
  drawSubgraphSoon();
  litBoxes();
  drawPanel();
}

let drawnPins = "";
function drawSubgraphSoon() {
  const pins = JSON.stringify([[...graph.pinned], [...graph.pinned].map((id) => graph.nodes.get(id).label)]);
  if (pins === drawnPins) return;
  drawnPins = pins;
  drawSubgraph();
}

// Add nodes to the selection, or take them out where all are in.
function toggleChosen(ids) {
  const before = graph.selection?.kind === "path" ? [] : selectedIds();
  const isIn = ids.every((id) => before.includes(id));
  const after = isIn ? before.filter((id) => !ids.includes(id)) : [...new Set([...before, ...ids])];
  select(after.length === 0 ? null : after.length === 1 ? {kind: "node", id: after[0]} : {kind: "many", ids: after});
  say(`${after.length} selected`);
}

// A node chosen from a list may be pruned, filtered out or scrolled away: bring it into the figure.
function reveal(id) {
  const node = graph.nodes.get(id);
  if (graph.hidden.has(category(node))) setHidden(category(node), false);
  if (!isLaidOut(node)) {
    graph.revealed.add(id);
    fit();
  }
  const place = graph.layout.places.get(id);
  const scroller = byId("scroller");
  if (place.x < scroller.scrollLeft + 20 || place.x > scroller.scrollLeft + scroller.clientWidth - 20) {
    scroller.scrollLeft = place.x - scroller.clientWidth / 2;
  }
  setStop(id);
}

// One mark at a time is a tab stop; the arrow keys move it.
function setStop(id) {
  graph.marks.get(graph.stop)?.setAttribute("tabindex", -1);
  graph.stop = id;
  graph.marks.get(id)?.setAttribute("tabindex", 0);
}

function writeHash(selection) {
  const value = selection === null || selection.kind === "many" ? null : selection.id ?? selection.name ?? selection.index + 1;
  try {
    history.replaceState(null, "", value === null ? location.pathname + location.search : `#${selection.kind}=${encodeURIComponent(value)}`);
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

// What was done, for those who cannot see it, and for a moment on the page.
let quiet = 0;
function say(text) {
  const status = byId("status");
  status.textContent = text;
  status.classList.add("shown");
  clearTimeout(quiet);
  quiet = setTimeout(() => status.classList.remove("shown"), 2500);
}

// --- keys and pointer

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};

function onFigureKey(event) {
  const id = event.target.closest(".node")?.dataset.id;
  if (!id) return;
  if (event.key === "Enter" || event.key === " ") choose(id, event.shiftKey);
  else if (event.key in ARROWS) moveStop(neighbour(id, ...ARROWS[event.key]));
  else return;
  event.preventDefault();
}

const choose = (id, isMore) => (isMore ? toggleChosen([id]) : select({kind: "node", id}));

function moveStop(id) {
  if (!id) return;
  setStop(id);
  graph.marks.get(id).focus();
}

// One letter each, wherever no text is being written.
const COMMANDS = {
  "/": () => byId("search").focus(),
  p: () => (selectedIds().length > 0 ? togglePins(selectedIds()) : say("Select a node to pin it.")),
  g: startGroup,
  e: () => byId("panel").querySelector(".edit")?.click(),
};

function startGroup() {
  const ids = selectedIds();
  if (ids.length === 0) return say("Select nodes to group them.");
  select({kind: "many", ids: [...ids]});
  byId("group-name").focus();
}

function onPageKey(event) {
  if (event.key === "Escape") {
    hideTooltip();
    select(null);
  }
  const isWriting = event.target.closest?.("input:not([type=range]), textarea");
  if (isWriting || event.ctrlKey || event.metaKey || event.altKey || !(event.key in COMMANDS)) return;
  event.preventDefault();
  COMMANDS[event.key]();
}

function onPointer(event) {
  const id = event.target.closest?.(".node")?.dataset.id;
  if (id) return id === graph.hovered && !byId("tooltip").hidden ? undefined : showTooltip((graph.hovered = id));
  if (!graph.drawn || graph.drawn.lit.length === 0) return hideTooltip();
  const box = byId("edges").getBoundingClientRect();
  const left = byId("scroller").scrollLeft;
  const edge = edgeAt(event.clientX - box.left + left, event.clientY - box.top);
  if (edge) showEdgeTip(edge, event.clientX, event.clientY);
  else hideTooltip();
}

function listen() {
  const scroller = byId("scroller");
  const markOf = (event) => event.target.closest?.(".node")?.dataset.id;
  scroller.addEventListener("click", (event) => {
    const id = markOf(event);
    if (id) choose(id, event.shiftKey);
    else if (!event.shiftKey) select(null);
  });
  scroller.addEventListener("keydown", onFigureKey);
  scroller.addEventListener("pointermove", onPointer);
  scroller.addEventListener("focusin", (event) => { if (markOf(event)) showTooltip(markOf(event)); });
  for (const name of ["pointerleave", "focusout", "scroll"]) scroller.addEventListener(name, hideTooltip);
  scroller.addEventListener("scroll", () => soon(drawEdges), {passive: true});
  document.addEventListener("keydown", onPageKey);
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest(".search")) openResults(false); });
  window.addEventListener("hashchange", () => select(readHash()));
  window.addEventListener("scroll", hideTooltip, {passive: true});
  window.addEventListener("beforeunload", (event) => { if (graph.isChanged) event.preventDefault(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawnPins = "";
    redraw();
  });
  new ResizeObserver(() => requestAnimationFrame(refit)).observe(scroller);
}

function refit() {
  if (graph.fitted === byId("scroller").clientWidth) return;
  fit();
  drawSubgraph();
}

linkSupernodes();
drawHeader();
drawToolbar();
drawTables();
fit();
select(readHash());
listen();
document.documentElement.dataset.ready = "yes";
