// The graph's file and what the page makes of it. The page shows the document it was given and writes the same
// document back, with labels, supernodes and pins as they are now.

const SCORE_MEANINGS = {
  replacement: "of the influence on the answer comes from the prompt, not from transcoder errors",
  completeness: "of what each node receives is explained, weighted by the node's influence",
  intervention: "rank correlation of predicted with measured effects of the kept features, nothing frozen",
};
const ALWAYS = ["token", "position", "bos", "logit", "target"];
const isTop = (node) => node.kind === "logit" || node.kind === "target";

function readGraph(source) {
  const more = source.mechkit || {};
  const nodes = new Map(source.nodes.map((item) => [item.node_id, readNode(item, more.nodes?.[item.node_id] || {}, more.n_layers)]));
  const list = [...nodes.values()];
  const edges = source.links.map((link, at) => ({
    from: nodes.get(link.source), to: nodes.get(link.target), weight: link.weight,
    size: more.edges?.influence?.[at] ?? Math.abs(link.weight), heads: more.edges?.heads?.[at] || null,
  }));
  edges.sort((a, b) => b.size - a.size);
  for (const edge of edges) {
    edge.from.outputs.push(edge);
    edge.to.inputs.push(edge);
  }
  for (const node of list) for (const side of [node.inputs, node.outputs]) side.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  const strongest = list.filter((node) => !ALWAYS.includes(node.kind)).sort((a, b) => (b.influence || 0) - (a.influence || 0));
  strongest.forEach((node, rank) => { node.rank = rank; });
  const view = source.qParams || {};
  return {
    source, more, nodes, list, edges, title: source.metadata.prompt, tokens: source.metadata.prompt_tokens, nLayers: more.n_layers,
    supernodes: new Map((view.supernodes || []).map(([name, ...ids]) => [name, ids])), pinned: new Set(view.pinnedIds || []),
    pathways: more.pathways || [], categories: makeCategories(list), hidden: new Set(), revealed: new Set(), matches: new Set(),
    boxes: [], selection: null, nPrunable: strongest.length, nNodes: Math.min(strongest.length, 300),
    nEdges: Math.min(edges.length, clamp(Math.round(edges.length * 0.08), 40, 150)), layout: null, marks: new Map(), placed: new Set(), isChanged: false,
  };
}

function readNode(item, about, nLayers) {
  const kind = about.kind || "feature";
  return {
    id: item.node_id, kind, layer: kind === "logit" || kind === "target" ? nLayers : about.layer, pos: about.pos ?? (kind === "bias" ? null : item.ctx_idx),
    label: item.clerp || item.node_id, given: item.clerp || item.node_id, name: about.name, class: about.class || null, class_share: about.class_share,
    supernode: null, activation: item.activation, influence: kind === "logit" || kind === "target" ? null : about.influence,
    probability: item.token_prob, check: about.check || null, plot: about.plot || null, notes: about.notes || null,
    text: about.site || null, biases: about.biases, inputs: [], outputs: [], rank: -1,
  };
}

// Supernodes by member; a node is in one at most.
function linkSupernodes() {
  for (const node of graph.list) node.supernode = null;
  for (const [name, ids] of graph.supernodes) for (const id of ids) graph.nodes.get(id).supernode = name;
}

function editedDocument() {
  const view = {...graph.source.qParams, pinnedIds: [...graph.pinned], supernodes: [...graph.supernodes].map(([name, ids]) => [name, ...ids])};
  const nodes = graph.source.nodes.map((item) => {
    const {label, given} = graph.nodes.get(item.node_id);
    return label === given ? item : {...item, clerp: label};
  });
  return {...graph.source, qParams: view, nodes};
}

function fileName(ending) {
  const stem = String(graph.source.metadata.slug || "graph").replace(/[^\w.+=-]+/g, "-").slice(0, 80) || "graph";
  return `${stem}.${ending}`;
}

// The browser saves the file itself: a link to data that the page holds, so nothing is asked of any network.
function download(blob, name) {
  const link = html("a", {href: URL.createObjectURL(blob), download: name});
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function saveJson() {
  download(new Blob([JSON.stringify(editedDocument())], {type: "application/json"}), fileName("json"));
  graph.isChanged = false;
  drawSaveState();
  say("Saved with its labels, supernodes and pins.");
}

function changed(what) {
  graph.isChanged = true;
  drawSaveState();
  if (what) say(what);
}

// --- edits

function renameNode(id, text) {
  const node = graph.nodes.get(id);
  node.label = text.trim() || node.given;
  refreshMark(node);
  changed(`Renamed: ${node.label}`);
  redraw();
}

function groupNodes(ids, text) {
  const name = freeName(text.trim() || "group");
  for (const [other, members] of [...graph.supernodes]) {
    const left = members.filter((id) => !ids.includes(id));
    if (left.length > 0) graph.supernodes.set(other, left);
    else graph.supernodes.delete(other);
  }
  graph.supernodes.set(name, [...ids]);
  linkSupernodes();
  changed(`${ids.length} nodes grouped as ${name}`);
  select({kind: "group", name});
  drawSubgraph();
}

const freeName = (text) => {
  let name = text;
  for (let n = 2; graph.supernodes.has(name); n += 1) name = `${text} ${n}`;
  return name;
};

function renameGroup(name, text) {
  const wanted = text.trim();
  if (!wanted || wanted === name) return select({kind: "group", name});
  const next = freeName(wanted);
  graph.supernodes = new Map([...graph.supernodes].map(([key, ids]) => [key === name ? next : key, ids]));
  linkSupernodes();
  changed(`Supernode renamed: ${next}`);
  select({kind: "group", name: next});
  drawSubgraph();
}

function ungroup(name) {
  const ids = graph.supernodes.get(name);
  graph.supernodes.delete(name);
  linkSupernodes();
  changed(`Ungrouped: ${name}`);
  select({kind: "many", ids: [...ids]});
  drawSubgraph();
}

// Pin all, or unpin all where every one is pinned.
function togglePins(ids) {
  const isPinned = ids.every((id) => graph.pinned.has(id));
  for (const id of ids) graph.pinned[isPinned ? "delete" : "add"](id);
  changed(`${ids.length === 1 ? graph.nodes.get(ids[0]).label : `${ids.length} nodes`} ${isPinned ? "unpinned" : "pinned"}`);
  redraw();
}

const selectedIds = () => {
  const {selection} = graph;
  if (selection === null) return [];
  if (selection.kind === "node") return [selection.id];
  if (selection.kind === "many") return selection.ids;
  return selection.kind === "group" ? graph.supernodes.get(selection.name) : graph.pathways[selection.index].nodes;
};
