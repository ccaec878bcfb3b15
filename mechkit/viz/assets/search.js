// Search: by label, token, id, class, supernode or kind. Matches are ringed in the figure and listed; Enter goes from one to
// the next, Shift+Enter back, Escape ends it.

const LISTED = 60;

function searchBox() {
  const input = html("input", {type: "search", id: "search", placeholder: "Search nodes", autocomplete: "off", spellcheck: "false", role: "combobox",
    "aria-label": "Search nodes by label, token, id, class or supernode", "aria-controls": "results", "aria-expanded": "false",
    oninput: () => runSearch(input.value), onkeydown: onSearchKey, onfocus: () => { if (graph.matches.size > 0) openResults(true); }});
  return html("div", {class: "search"}, input, html("kbd", {"aria-hidden": "true"}, "/"),
    html("div", {id: "results-box", hidden: true}, html("p", {id: "n-results", role: "status"}), html("ul", {id: "results", role: "listbox", "aria-label": "Nodes found"})));
}

const searchText = (node) =>
  [node.label, node.id, node.class, node.supernode, KIND_NAMES[node.kind], node.text, isNumber(node.pos) ? graph.tokens[node.pos] : ""].join("\n").toLowerCase();

function runSearch(text) {
  const words = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length === 0 ? [] : graph.list.filter((node) => words.every((word) => searchText(node).includes(word)));
  found.sort((a, b) => (b.influence ?? 2) - (a.influence ?? 2));
  graph.matches = new Set(found.map((node) => node.id));
  graph.match = -1;
  const note = words.length === 0 ? "" : found.length === 0 ? "No node matches." : `${found.length} ${found.length === 1 ? "node" : "nodes"}; Enter for the next`;
  byId("n-results").textContent = note;
  byId("results").replaceChildren(...found.slice(0, LISTED).map(resultItem));
  openResults(words.length > 0);
  paintMarks();
}

function openResults(isOpen) {
  byId("results-box").hidden = !isOpen;
  byId("search").setAttribute("aria-expanded", String(isOpen));
}

function resultItem(node, at) {
  return html("li", {role: "option", id: `result-${at}`, "aria-selected": "false", "data-id": node.id, onpointerdown: (event) => {
    event.preventDefault();
    goToMatch(at);
    openResults(false);
  }}, glyph(node.kind, graph.categories.get(category(node))), html("span", {class: "row-label"}, node.label, html("small", {}, shortPlace(node))),
    html("span", {class: "row-value"}, isNumber(node.influence) ? percent(node.influence) : ""));
}

function goToMatch(at) {
  const ids = [...graph.matches];
  if (ids.length === 0) return;
  graph.match = (at + ids.length) % ids.length;
  select({kind: "node", id: ids[graph.match]});
  byId("n-results").textContent = `${graph.match + 1} of ${ids.length}; Enter for the next`;
  for (const [i, item] of [...byId("results").children].entries()) {
    item.setAttribute("aria-selected", String(i === graph.match));
    if (i === graph.match) item.scrollIntoView({block: "nearest"});
  }
  byId("search").setAttribute("aria-activedescendant", `result-${graph.match}`);
}

function onSearchKey(event) {
  if (event.key === "Enter") goToMatch(graph.match + (event.shiftKey ? -1 : 1));
  else if (event.key === "ArrowDown") goToMatch(graph.match + 1);
  else if (event.key === "ArrowUp") goToMatch(graph.match - 1);
  else if (event.key === "Escape") {
    event.target.value = "";
    runSearch("");
    event.target.blur();
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
