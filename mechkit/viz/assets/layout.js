// Where everything goes. A cell is one (layer, position); its nodes are packed onto lines like words, so
// no two can overlap; a column is as wide, and a row as high, as its fullest cell needs.

const FONT = "12px system-ui, sans-serif";
const MONO = "12px ui-monospace, 'SFMono-Regular', Menlo, Consolas, monospace";
const SPACE = {node: 4, cell: 7, column: 10, top: 14, foot: 46, minRow: 26, minGap: 46, maxGap: 104, height: 560};
const MAX_LINES = 6;
const BIAS = "bias";

function sizeNodes(nodes) {
  const largest = Math.max(...nodes.map((node) => node.influence || 0), 1e-12);
  const top = nodes.length <= 160 ? 11 : nodes.length <= 450 ? 9 : 7.5;
  const sizes = new Map();
  for (const node of nodes) {
    const r = isNumber(node.influence) ? 4.5 + (top - 4.5) * Math.sqrt(Math.max(node.influence, 0) / largest) : 5;
    const text = isTop(node) ? shorten(visible(node.label), 150, MONO) : null;
    const w = text === null ? 2 * r + 2 : textWidth(text, MONO) + 18;
    sizes.set(node.id, {r, w, h: text === null ? 2 * r + 2 : 24, text});
  }
  return sizes;
}

// Lines of at most `width`; each line as high as its largest node.
function packLines(ids, sizes, width) {
  const lines = [];
  for (const id of ids) {
    const {w, h} = sizes.get(id);
    const last = lines[lines.length - 1];
    if (last && last.w + SPACE.node + w <= width) {
      last.ids.push(id);
      last.w += SPACE.node + w;
      last.h = Math.max(last.h, h);
    } else {
      lines.push({ids: [id], w, h});
    }
  }
  return {lines, w: Math.max(...lines.map((line) => line.w)), h: sum(lines.map((line) => line.h + SPACE.node)) - SPACE.node};
}

// Nodes of one class side by side, the class with most influence first, in it the strongest first.
function orderCell(nodes) {
  const weight = new Map();
  for (const node of nodes) weight.set(category(node), (weight.get(category(node)) || 0) + (node.influence || 0));
  const rank = (node) => (node.kind === "feature" ? 0 : isTop(node) ? -1 : 1);
  return [...nodes].sort(
    (a, b) => rank(a) - rank(b) || weight.get(category(b)) - weight.get(category(a))
      || category(a).localeCompare(category(b)) || (b.influence || 0) - (a.influence || 0));
}

function makeCells(nodes) {
  const cells = new Map();
  for (const node of nodes) {
    const column = isNumber(node.pos) ? node.pos : BIAS;
    const key = `${node.layer},${column}`;
    if (!cells.has(key)) cells.set(key, {layer: node.layer, column, nodes: []});
    cells.get(key).nodes.push(node);
  }
  for (const cell of cells.values()) cell.ids = orderCell(cell.nodes).map((node) => node.id);
  return [...cells.values()];
}

function measureColumn(key, cells, sizes, token) {
  const own = cells.filter((cell) => cell.column === key);
  const widest = Math.max(0, ...own.flatMap((cell) => cell.ids.map((id) => sizes.get(id).w)));
  const longest = Math.max(0, ...own.map((cell) => sum(cell.ids.map((id) => sizes.get(id).w + SPACE.node))));
  const name = clamp(textWidth(token, MONO) + 12, 34, 88);
  return {key, token, widest, longest, minimum: Math.max(name, widest + 2 * SPACE.cell)};
}

// The fewest lines a cell for which all columns fit side by side; what is left over goes to all alike.
function setColumnWidths(columns, available) {
  for (let lines = 2; lines <= MAX_LINES; lines += 1) {
    for (const column of columns) {
      const slack = column.longest > 1.2 * column.widest ? column.widest : 0;
      column.w = Math.ceil(Math.max(column.minimum, column.longest / lines + slack + 2 * SPACE.cell));
    }
    if (sum(columns.map((column) => column.w + SPACE.column)) <= available) break;
  }
  const wide = columns.filter((column) => column.key !== BIAS);
  const spare = Math.floor((available - sum(columns.map((column) => column.w + SPACE.column))) / wide.length);
  let x = SPACE.column / 2;
  for (const column of columns) {
    column.x = x;
    if (column.key !== BIAS) column.w += Math.max(spare, 0);
    x += column.w + SPACE.column;
  }
  return Math.max(x - SPACE.column / 2, available);
}

function setRowHeights(rows, cells) {
  for (const row of rows) {
    row.h = Math.max(SPACE.minRow, ...cells.filter((cell) => cell.layer === row.layer).map((cell) => cell.packed.h + 2 * SPACE.cell));
  }
  const spare = (SPACE.height - sum(rows.map((row) => row.h))) / Math.max(rows.length - 1, 1);
  const gap = clamp(spare, SPACE.minGap, SPACE.maxGap);
  let y = SPACE.top;
  for (const row of rows) {
    row.y = y;
    y += row.h + gap;
  }
  return y - gap;
}

function placeCell(cell, column, row, sizes, places) {
  const x = column.x + column.w / 2;
  let y = row.y + (row.h - cell.packed.h) / 2;
  for (const line of cell.packed.lines) {
    let left = x - line.w / 2;
    for (const id of line.ids) {
      const size = sizes.get(id);
      places.set(id, {...size, x: left + size.w / 2, y: y + line.h / 2});
      left += size.w + SPACE.node;
    }
    y += line.h + SPACE.node;
  }
  const w = cell.packed.w + 2 * SPACE.cell;
  const h = cell.packed.h + 2 * SPACE.cell;
  return {x: x - w / 2, y: row.y + (row.h - h) / 2, w, h};
}

function layOut(nodes, tokens, nLayers, available) {
  const sizes = sizeNodes(nodes);
  const cells = makeCells(nodes);
  const keys = tokens.map((_, pos) => pos);
  if (cells.some((cell) => cell.column === BIAS)) keys.unshift(BIAS);
  const columns = keys.map((key) => measureColumn(key, cells, sizes, key === BIAS ? BIAS : visible(tokens[key])));
  const width = setColumnWidths(columns, available);
  const byKey = new Map(columns.map((column) => [column.key, column]));
  for (const cell of cells) cell.packed = packLines(cell.ids, sizes, byKey.get(cell.column).w - 2 * SPACE.cell);
  const rows = [];
  for (let layer = nLayers; layer >= -1; layer -= 1) {
    rows.push({layer, name: layer === nLayers ? "Answer" : layer === -1 ? "Embeddings" : `Layer ${layer}`});
  }
  const bottom = setRowHeights(rows, cells);
  const byLayer = new Map(rows.map((row) => [row.layer, row]));
  const places = new Map();
  const trays = cells.map((cell) => placeCell(cell, byKey.get(cell.column), byLayer.get(cell.layer), sizes, places));
  return {columns, rows, trays, places, width, bottom, height: bottom + SPACE.foot};
}
