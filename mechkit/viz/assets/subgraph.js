// The subgraph: pinned nodes as boxes, those of one supernode in one, with what flows between them. Inputs at one position
// are one box, and all errors. Edges over a row of boxes bend around them at a point of their own, as in layered drawings.

const BOX = {width: 196, plain: 56, plots: 104, input: 34, gap: 26, row: 62, pad: 14, thumb: 40, bend: 34};
const MOST_FLOWS = 28;
const CROWD = 3;

function boxName(node) {
  if (node.kind === "error") return "errors";
  if (node.kind === "bias") return "biases";
  if (["token", "position", "bos"].includes(node.kind)) return `input ${node.pos}`;
  return node.supernode === null ? `node ${node.id}` : `group ${node.supernode}`;
}

function makeBoxes() {
  const boxes = new Map();
  const nodes = [...graph.pinned].map((id) => graph.nodes.get(id));
  const crowds = crowdsOf(nodes);
  for (const node of nodes) {
    const name = crowds.get(node) || boxName(node);
    if (!boxes.has(name)) boxes.set(name, {name, nodes: []});
    boxes.get(name).nodes.push(node);
  }
  for (const box of boxes.values()) describeBox(box);
  return [...boxes.values()];
}

// Features in no supernode, where more than a few share layer and position: they are one box.
function crowdsOf(nodes) {
  const places = new Map();
  for (const node of nodes) {
    if (node.kind !== "feature" || node.supernode !== null) continue;
    const place = `others ${node.layer} ${node.pos}`;
    places.set(place, [...(places.get(place) || []), node]);
  }
  return new Map([...places].filter(([, group]) => group.length >= CROWD).flatMap(([place, group]) => group.map((node) => [node, place])));
}

function describeBox(box) {
  const {nodes} = box;
  nodes.sort((a, b) => (b.influence || 0) - (a.influence || 0));
  const [strongest] = nodes;
  box.group = box.name.startsWith("group ") ? strongest.supernode : null;
  box.isInput = /^(input|errors|biases)/.test(box.name);
  box.isTop = isTop(strongest);
  box.layer = box.isInput ? -1 : Math.round(sum(nodes.map((node) => node.layer)) / nodes.length);
  box.pos = box.name === "errors" || box.name === "biases" ? graph.tokens.length : strongest.pos ?? 0;
  box.share = sum(nodes.map((node) => node.influence || 0));
  box.plots = nodes.filter((node) => node.plot).slice(0, 4);
  box.isCrowd = box.name.startsWith("others ");
  box.title = box.isCrowd ? `${strongest.label}, and ${nodes.length - 1} more` : box.group ?? (box.isInput && isNumber(strongest.pos) && box.pos < graph.tokens.length ? visible(graph.tokens[box.pos]) : box.name === "errors" || box.name === "biases" ? box.name : strongest.label);
  box.item = graph.categories.get(category(strongest));
  box.h = box.isInput || box.isTop ? BOX.input : box.plots.length > 0 ? BOX.plots : BOX.plain;
  box.w = box.isInput || box.isTop ? clamp(textWidth(box.title, MONO) + 30, 54, 150) : BOX.width;
}

// What flows from box to box: the shares of their edges together, the sign of the sum, and the heads that carry it.
function makeFlows(boxes) {
  const owner = new Map(boxes.flatMap((box) => box.nodes.map((node) => [node.id, box])));
  const flows = new Map();
  for (const box of boxes) for (const node of box.nodes) for (const edge of node.outputs) {
    const to = owner.get(edge.to.id);
    if (!to || to === box) continue;
    const key = `${box.name}\n${to.name}`;
    if (!flows.has(key)) flows.set(key, {from: box, to, size: 0, weight: 0, heads: new Map()});
    const flow = flows.get(key);
    flow.size += edge.size;
    flow.weight += edge.size * Math.sign(edge.weight);
    for (const [head, share] of edge.heads || []) flow.heads.set(head, (flow.heads.get(head) || 0) + Math.abs(share) * edge.size);
  }
  return [...flows.values()].sort((a, b) => b.size - a.size).filter((flow, at, all) => at < MOST_FLOWS && flow.size > 0.02 * all[0].size);
}

const headsOf = (flow) => [...flow.heads].filter(([name, size]) => name !== "no head" && size >= 0.15 * flow.size)
  .sort((a, b) => b[1] - a[1]).slice(0, 3).map(([name]) => name);

// Rows of boxes from the top down; an edge over a row has a bend there, shared by all edges to the same box.
function makeRows(boxes, flows) {
  const layers = [...new Set(boxes.map((box) => (box.isTop ? Infinity : box.layer)))].sort((a, b) => b - a);
  const rows = layers.map((layer) => boxes.filter((box) => (box.isTop ? Infinity : box.layer) === layer));
  rows.forEach((row, at) => { for (const box of row) box.row = at; });
  for (const flow of flows) {
    flow.bends = [];
    for (let at = flow.from.row - 1; at > flow.to.row; at -= 1) {
      const name = `bend to ${flow.to.name}`;
      let bend = rows[at].find((item) => item.name === name);
      if (!bend) rows[at].push((bend = {name, isBend: true, w: BOX.bend, h: 0, row: at, pulls: []}));
      flow.bends.push(bend);
    }
    const chain = flow.from.row > flow.to.row ? [flow.from, ...flow.bends, flow.to] : [];
    for (let at = 1; at < chain.length; at += 1) (chain[at].pulls ||= []).push(chain[at - 1]);
  }
  return rows;
}

function placeRows(rows, available) {
  const widths = rows.map((row) => sum(row.map((item) => item.w)) + BOX.gap * (row.length - 1));
  const width = Math.max(available, ...widths.map((w) => w + 2 * BOX.pad));
  let y = BOX.pad;
  for (const row of rows) {
    row.h = Math.max(BOX.input, ...row.map((item) => item.h));
    for (const item of row) item.y = y + row.h / 2;
    y += row.h + BOX.row;
  }
  for (const row of [...rows].reverse()) placeRow(row, width);
  return {width, height: y - BOX.row + BOX.pad};
}

// Each item where what feeds it is, on average, then apart from its neighbours and inside the drawing.
function placeRow(row, width) {
  const wish = (item) => (item.pulls?.length ? sum(item.pulls.map((from) => from.x)) / item.pulls.length : null);
  const isBottom = row.every((item) => wish(item) === null);
  row.sort((a, b) => (isBottom ? a.pos - b.pos : (wish(a) ?? width / 2) - (wish(b) ?? width / 2) || Number(Boolean(b.isBend)) - Number(Boolean(a.isBend))));
  const total = sum(row.map((item) => item.w));
  const gap = isBottom ? clamp((width * 0.7 - total) / Math.max(row.length, 1), BOX.gap, 90) : row.some((item) => item.isBend) ? 2 * BOX.gap : BOX.gap;
  const middle = isBottom ? width / 2 : sum(row.map((item) => wish(item) ?? width / 2)) / row.length;
  const whole = total + gap * (row.length - 1);
  let x = clamp(middle - whole / 2, BOX.pad, Math.max(BOX.pad, width - BOX.pad - whole));
  for (const item of row) {
    item.x = x + item.w / 2;
    x += item.w + gap;
  }
}

function flowPath(flow) {
  const chain = [flow.from, ...flow.bends, flow.to];
  const points = chain.map((item) => [item.x, item.y]);
  points[0] = [flow.from.x, flow.from.y - flow.from.h / 2];
  points[points.length - 1] = [flow.to.x + spread(flow), flow.to.y + flow.to.h / 2 + 2];
  const [first, ...rest] = points;
  let [x0, y0] = first;
  let d = `M${x0.toFixed(1)} ${y0.toFixed(1)}`;
  for (const [x, y] of rest) {
    const pull = (y0 - y) * 0.5;
    d += `C${x0.toFixed(1)} ${(y0 - pull).toFixed(1)} ${x.toFixed(1)} ${(y + pull).toFixed(1)} ${x.toFixed(1)} ${y.toFixed(1)}`;
    [x0, y0] = [x, y];
  }
  return {d, from: points.at(-2), to: points.at(-1)};
}

// Edges enter a wide box side by side, in the order in which they come.
function spread(flow) {
  const beside = (flow.to.pulls || []).length;
  if (flow.to.w < 100 || beside < 2) return 0;
  const last = flow.bends.at(-1) || flow.from;
  return clamp((last.x - flow.to.x) * 0.3, -flow.to.w / 2 + 16, flow.to.w / 2 - 16);
}

function drawSubgraph() {
  const body = byId("subgraph");
  const boxes = (graph.boxes = makeBoxes());
  byId("subgraph-card").classList.toggle("empty", boxes.length === 0);
  byId("n-pinned").textContent = graph.pinned.size === 0 ? "" : `${graph.pinned.size} pinned nodes`;
  if (boxes.length === 0) return body.replaceChildren(html("p", {class: "hint"}, "Nothing is pinned. Select nodes or a pathway and press ", html("kbd", {}, "p"), " to keep them here with the edges between them."));
  const flows = makeFlows(boxes);
  const {width, height} = placeRows(makeRows(boxes, flows), body.clientWidth || 700);
  const largest = flows[0]?.size || 1;
  const lines = flows.slice().reverse().map((flow) => drawFlow(flow, largest));
  const names = flows.filter((flow) => flow.size > 0.12 * largest).map(flowName).filter(Boolean);
  body.replaceChildren(html("div", {class: "board", css: {width: `${width}px`, height: `${height}px`}},
    svg("svg", {width, height, "aria-hidden": "true"}, lines, clearOf(names)), ...boxes.map(drawBox)));
  litBoxes();
}

function drawFlow(flow, largest) {
  const colour = flow.weight < 0 ? "var(--negative)" : flow.from.isInput || flow.from.item.colour === "--class-none" ? "var(--positive)" : `var(${flow.from.item.colour})`;
  const width = 1 + 8 * (flow.size / largest);
  const line = svg("path", {class: "flow", d: flowPath(flow).d, "stroke-width": width.toFixed(1), "data-from": flow.from.name, "data-to": flow.to.name,
    "stroke-dasharray": flow.weight < 0 ? "8 5" : null}, svg("title", {}, `${flow.from.title} → ${flow.to.title}: ${percent(flow.size)} of the answer${headsOf(flow).length ? `, carried by ${headsOf(flow).join(", ")}` : ""}`));
  line.style.setProperty("stroke", colour);
  return line;
}

function flowName(flow) {
  const text = headsOf(flow).join(" ");
  if (!text) return null;
  const {from, to} = flowPath(flow);
  const at = flow.bends.length > 0 ? 0.5 : 0.42;
  return {text, x: from[0] + (to[0] - from[0]) * at, y: from[1] + (to[1] - from[1]) * at, w: textWidth(text, "11px system-ui, sans-serif") + 10};
}

// Names of heads where no other name is, strongest flow first; the same heads on neighbouring flows are named once.
function clearOf(names) {
  const taken = [];
  for (const name of names) {
    const box = boxAround({...name, h: 17}, 2);
    if (!taken.some((other) => meet(box, other.box))) taken.push({...name, box});
  }
  return taken.map(({text, x, y, w}) => svg("g", {class: "flow-name"}, svg("rect", {x: x - w / 2, y: y - 8.5, width: w, height: 17, rx: 8.5}),
    svg("text", {x, y, "text-anchor": "middle", dy: "0.34em"}, text)));
}

function drawBox(box) {
  const note = box.isInput || box.isTop ? null : html("small", {}, `L${box.layer} · ${box.nodes.length > 1 ? `${box.nodes.length} features · ` : ""}${percent(box.share)}`);
  const thumbs = box.plots.length === 0 ? null : html("span", {class: "thumbs"}, box.plots.map((node) => thumbnail(node)));
  const kind = box.isTop ? "top" : box.isInput ? "input" : "feature";
  return html("button", {type: "button", class: `box ${kind}`, "data-box": box.name, onclick: (event) => chooseBox(box, event.shiftKey),
    "aria-label": `${box.title}${note ? `, ${note.textContent}` : ""}`,
    css: {left: `${box.x - box.w / 2}px`, top: `${box.y - box.h / 2}px`, width: `${box.w}px`, height: `${box.h}px`, "--swatch": `var(${box.item.colour})`}},
    html("span", {class: "box-title"}, box.title), note, thumbs);
}

function chooseBox(box, isMore) {
  const ids = box.nodes.map((node) => node.id);
  if (isMore) return toggleChosen(ids);
  if (box.group !== null && ids.length === graph.supernodes.get(box.group).length) return select({kind: "group", name: box.group});
  select(ids.length === 1 ? {kind: "node", id: ids[0]} : {kind: "many", ids});
}

// Boxes and flows that the selection touches.
function litBoxes() {
  const ids = new Set(graph.selection?.kind === "node" ? selectedIds() : graph.focus === null ? [] : selectedIds());
  const owner = new Set(graph.boxes.filter((box) => box.nodes.some((node) => ids.has(node.id))).map((box) => box.name));
  const isPath = graph.selection?.kind === "path";
  byId("subgraph").classList.toggle("focused", owner.size > 0);
  for (const item of byId("subgraph").querySelectorAll(".box")) item.classList.toggle("lit", owner.has(item.dataset.box));
  for (const line of byId("subgraph").querySelectorAll(".flow")) {
    const ends = [owner.has(line.dataset.from), owner.has(line.dataset.to)];
    line.classList.toggle("lit", isPath ? ends[0] && ends[1] : ends[0] || ends[1]);
  }
}
