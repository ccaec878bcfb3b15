// The side panel: with nothing selected the pathways and the strongest nodes, else the selection.

const SHORT_LIST = 8;

function drawPanel() {
  const {selection} = graph;
  const parts = selection === null ? overview() : selection.kind === "node" ? nodeDetails(graph.nodes.get(selection.id))
    : selection.kind === "path" ? pathDetails(selection.index) : selection.kind === "many" ? manyDetails(selection.ids) : groupDetails(selection.name);
  const panel = byId("panel");
  panel.replaceChildren(...parts.filter((part) => part !== null));
  panel.scrollTop = 0;
}

const heading = (text, note) => html("h3", {}, text, note ? html("small", {}, note) : null);
const back = () => html("button", {type: "button", class: "back", onclick: () => select(null)}, "← Overview", html("kbd", {}, "Esc"));

const KEYS = [["/", "search"], ["← ↑ ↓ →", "move between nodes"], ["Enter", "select"], ["Shift+Enter", "select several"], ["p", "pin"], ["g", "group"], ["e", "edit the label"], ["Esc", "overview"]];

function overview() {
  const strongest = graph.list.filter((node) => isNumber(node.influence)).sort((a, b) => b.influence - a.influence).slice(0, 10);
  const pathways = graph.pathways.length === 0 ? [] : [heading("Pathways", "share of the answer"), html("ol", {class: "paths"}, graph.pathways.map(pathItem))];
  const nodes = strongest.length === 0 ? [] : [heading("Strongest nodes", "share of the answer"),
    html("ul", {class: "rows"}, strongest.map((node) => nodeRow(node, percent(node.influence), node.influence / strongest[0].influence, false)))];
  const groups = [...graph.supernodes.keys()];
  const supernodes = groups.length === 0 ? [] : [heading("Supernodes"), html("p", {class: "chips"}, groups.map((name) =>
    html("button", {type: "button", class: "chip", onclick: () => select({kind: "group", name})}, `${name} (${graph.supernodes.get(name).length})`)))];
  const keys = html("dl", {class: "keys"}, KEYS.map(([key, what]) => html("div", {}, html("dt", {}, html("kbd", {}, key)), html("dd", {}, what))));
  return [html("p", {class: "hint"}, "Select a node to see what it responds to, what feeds it and what it feeds; with Shift, several."), ...pathways, ...nodes, ...supernodes, heading("Keys"), keys];
}

function pathItem(pathway, index) {
  const largest = Math.max(...graph.pathways.map((item) => Math.abs(item.share || 0)), 1e-12);
  return html("li", {}, html("button", {type: "button", class: "path", onclick: () => select({kind: "path", index})},
    html("span", {class: "path-text"}, pathway.text),
    isNumber(pathway.share) ? html("span", {class: "path-share"}, percent(pathway.share)) : null,
    isNumber(pathway.share) ? bar(pathway.share / largest, false) : null));
}

function pathDetails(index) {
  const pathway = graph.pathways[index];
  const note = isNumber(pathway.share) ? `carries ${percent(pathway.share)} of the answer` : "";
  return [back(), html("p", {class: "kicker"}, `Pathway ${index + 1} of ${graph.pathways.length}`), html("h2", {}, pathway.text),
    note ? html("p", {class: "where"}, note) : null, actions(pinAction(pathway.nodes)), ...memberList(pathway.nodes)];
}

function groupDetails(name) {
  const ids = graph.supernodes.get(name);
  const share = sum(ids.map((id) => graph.nodes.get(id).influence || 0));
  return [back(), html("p", {class: "kicker"}, `Supernode of ${ids.length}`), ...title(name, (text) => renameGroup(name, text), "Name of the supernode"),
    actions(pinAction(ids), html("button", {type: "button", class: "action", id: "ungroup", onclick: () => ungroup(name)}, "Ungroup")),
    facts([["Share of the answer", percent(share)]]), ...checkBlock(graph.more.supernodes?.[name]), ...thumbRow(ids), ...memberList(ids)];
}

function manyDetails(ids) {
  const input = html("input", {type: "text", id: "group-name", placeholder: "Name of the supernode", "aria-label": "Name of the supernode", onkeydown: (event) => {
    if (event.key === "Enter") groupNodes(ids, input.value);
    else if (event.key !== "Escape") return;
    else byId("panel").querySelector(".back").focus();
    event.preventDefault();
    event.stopPropagation();
  }});
  return [back(), html("p", {class: "kicker"}, "Selection"), html("h2", {}, `${ids.length} nodes`),
    html("div", {class: "group-row"}, input, html("button", {type: "button", class: "action", onclick: () => groupNodes(ids, input.value)}, "Group", html("kbd", {}, "g"))),
    actions(pinAction(ids)), ...thumbRow(ids), ...memberList(ids)];
}

const actions = (...buttons) => html("div", {class: "actions"}, buttons);

function pinAction(ids) {
  const isPinned = ids.every((id) => graph.pinned.has(id));
  return html("button", {type: "button", class: "action", "aria-pressed": String(isPinned), onclick: () => togglePins(ids)},
    isPinned ? "Unpin" : "Pin", html("kbd", {}, "p"));
}

// A heading that can be edited in place: a button, Enter keeps, Escape does not.
function title(text, keep, name) {
  const heading = html("h2", {}, text);
  const button = html("button", {type: "button", class: "action edit", "aria-label": `Edit: ${name}`, onclick: () => {
    const input = html("input", {type: "text", class: "title-input", value: text, "aria-label": name});
    let isDone = false;
    const end = (isKept) => {
      if (isDone) return;
      isDone = true;
      if (isKept) keep(input.value);
      else drawPanel();
      byId("panel").querySelector(".edit")?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        end(event.key === "Enter");
      }
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.focus();
    input.select();
  }}, "Edit", html("kbd", {}, "e"));
  const row = html("div", {class: "title-row"}, heading, button);
  return [row];
}

function thumbRow(ids) {
  const nodes = ids.map((id) => graph.nodes.get(id)).filter((node) => node.plot).slice(0, 12);
  return nodes.length === 0 ? [] : [heading("Activity over all operands"), html("div", {class: "thumb-row"}, nodes.map((node) =>
    html("button", {type: "button", title: node.label, "aria-label": node.label, onclick: () => select({kind: "node", id: node.id})}, thumbnail(node, 74))))];
}

function memberList(ids) {
  const nodes = ids.map((id) => graph.nodes.get(id));
  const largest = Math.max(...nodes.map((node) => node.influence || 0), 1e-12);
  const row = (node) => nodeRow(node, isNumber(node.influence) ? percent(node.influence) : "", (node.influence || 0) / largest, false);
  return [heading("Nodes, from the prompt up", "share of the answer"), html("ul", {class: "rows"}, nodes.sort((a, b) => a.layer - b.layer).map(row))];
}

// A bar from the middle where values have signs, from the left where they are shares.
function bar(size, isSigned) {
  const length = Math.max(Math.abs(size) * (isSigned ? 50 : 100), 0.8);
  const left = !isSigned ? 0 : size < 0 ? 50 - length : 50;
  return html("span", {class: `bar ${isSigned ? "signed" : ""} ${size < 0 ? "negative" : ""}`},
    html("span", {css: {left: `${left}%`, width: `${length}%`}}));
}

function nodeRow(node, text, size, isSigned, carried = "") {
  const item = graph.categories.get(category(node));
  return html("li", {}, html("button", {type: "button", class: "row", title: describe(node), onclick: (event) => (event.shiftKey ? toggleChosen([node.id]) : select({kind: "node", id: node.id}))},
    glyph(node.kind, item), html("span", {class: "row-label"}, node.label, html("small", {}, shortPlace(node)), carried ? html("small", {class: "heads"}, carried) : null),
    bar(size, isSigned), html("span", {class: "row-value"}, text)));
}

function shortPlace(node) {
  const layer = node.layer === -1 ? "emb" : node.layer === graph.nLayers ? "answer" : `L${node.layer}`;
  return isNumber(node.pos) ? `${layer} ‘${shorten(visible(graph.tokens[node.pos]), 70, FONT)}’` : layer;
}

function nodeDetails(node) {
  const item = graph.categories.get(category(node));
  const values = [["Share of the answer", isNumber(node.influence) ? percent(node.influence) : null], ["Activation", isNumber(node.activation) ? number(node.activation) : null],
    ["Probability", isNumber(node.probability) ? percent(node.probability) : null]];
  return [
    back(),
    html("p", {class: "kicker"}, glyph(node.kind, item), KIND_NAMES[node.kind]),
    ...title(node.label, (text) => renameNode(node.id, text), "Label of the node"),
    html("p", {class: "where"}, upperFirst(whereIs(node)), html("code", {}, node.text || node.id)),
    actions(pinAction([node.id])),
    chips(node, item),
    facts(values),
    ...plotBlock(node),
    ...noteBlocks(node.notes),
    ...checkBlock(node.check),
    ...linkBlock("Strongest inputs", node.inputs, "from"),
    ...linkBlock("Strongest outputs", node.outputs, "to"),
  ];
}

const upperFirst = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function chips(node, item) {
  const members = node.supernode ? graph.supernodes.get(node.supernode) : null;
  if (!node.class && !members) return null;
  const share = isNumber(node.class_share) ? `, explains ${percent(node.class_share)} of its variance` : "";
  return html("p", {class: "chips"},
    node.class ? html("span", {class: "chip"}, html("i", {class: item.hollow ? "hollow" : "", css: {"--swatch": `var(${item.colour})`}}), `${node.class}${share}`) : null,
    members ? html("button", {type: "button", class: "chip", onclick: () => select({kind: "group", name: node.supernode})},
      `Supernode: ${node.supernode} (${members.length})`) : null);
}

function facts(values) {
  const pairs = values.filter(([, value]) => value !== null);
  return pairs.length === 0 ? null : html("dl", {class: "facts"}, pairs.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
}

function plotBlock(node) {
  if (!node.plot) return [];
  const names = graph.more.operands?.names || ["a", "b"];
  return [heading(`Activity over all ${names[0]}, ${names[1]}`, "at its own position"), operandPlot(node.plot, graph.more.operands)];
}

const CHECKS = [
  ["predicted", "The graph predicts"], ["measured", "Measured, nothing frozen"],
  ["frozen", "Measured, attention and norms frozen"], ["gradient", "The model’s own gradient"], ["direct", "Direct effect alone"],
];

function checkBlock(check) {
  const known = check ? CHECKS.filter(([key]) => isNumber(check[key])) : [];
  if (known.length === 0) return [];
  const largest = Math.max(...known.map(([key]) => Math.abs(check[key])), 1e-12);
  return [heading("When it is suppressed", "change of the answer’s logit"),
    html("ul", {class: "checks"}, known.map(([key, name]) => html("li", {class: key},
      html("span", {class: "check-name"}, name), bar(check[key] / largest, true), html("span", {class: "row-value"}, signed(check[key])))))];
}

function linkBlock(title, edges, end) {
  if (edges.length === 0) return [];
  const largest = Math.abs(edges[0].weight) || 1;
  const row = (edge) => nodeRow(edge[end], signed(edge.weight), edge.weight / largest, true, headText(edge.heads?.filter(([name]) => name !== "no head")));
  const list = html("ul", {class: "rows"}, edges.slice(0, SHORT_LIST).map(row));
  const more = edges.length <= SHORT_LIST ? null : html("button", {type: "button", class: "more", onclick: (event) => {
    list.append(...edges.slice(SHORT_LIST).map(row));
    event.currentTarget.remove();
  }}, `Show all ${edges.length}`);
  return [heading(title, edges.some((edge) => edge.heads) ? "contribution, by heads" : "signed contribution"), list, more];
}
