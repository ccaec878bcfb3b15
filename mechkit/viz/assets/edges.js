// Edges, on a canvas behind the marks that is as large as what can be seen of the figure. The strongest are drawn first
// and weaker ones slid beneath them, some hundreds a frame, so that tens of thousands never block the page.

const A_FRAME = 400;
const MOST_FADED = 150;
const MOST_DASHED = 600; // dashes take ten times as long to draw; colour tells signs apart where edges are that many
const LOOKS = {plain: 0.42, lit: 0.8, faded: 0.06};
let drawing = 0;

// From the top of the source up to the foot of the target; within a layer, from foot to foot below the row.
function edgePoints(edge) {
  const {places} = graph.layout;
  const from = places.get(edge.from.id);
  const to = places.get(edge.to.id);
  const isUp = edge.from.layer < edge.to.layer;
  const y0 = from.y + (isUp ? -from.h : from.h) / 2;
  const y1 = to.y + to.h / 2;
  const pull = isUp ? Math.max(26, (y0 - y1) * 0.45) : 34 + Math.abs(from.x - to.x) * 0.08;
  return [from.x, y0, from.x, isUp ? y0 - pull : y0 + pull, to.x, y1 + pull, to.x, y1];
}

function edgeCurve(edge) {
  const [x0, y0, ...rest] = edgePoints(edge);
  const path = new Path2D();
  path.moveTo(x0, y0);
  path.bezierCurveTo(...rest);
  return path;
}

// Which edges the slider and the selection show, lit ones first. Widths go by the strongest edge drawn alike.
function chooseEdges(focus) {
  const isVisible = (edge) => edge.from.isShown && edge.to.isShown;
  const lit = focus === null ? [] : [...focus.edges].filter(isVisible).sort((a, b) => b.size - a.size);
  const rest = [];
  const most = focus === null ? graph.nEdges : Math.min(graph.nEdges, MOST_FADED);
  for (const edge of graph.edges) {
    if (rest.length >= most) break;
    if (isVisible(edge) && !focus?.edges.has(edge)) rest.push(edge);
  }
  return {lit, rest, isFaded: focus !== null, scale: {lit: lit[0]?.size || 1, rest: Math.max(rest[0]?.size || 0, lit[0]?.size || 0) || 1}};
}

function fitCanvas() {
  const canvas = byId("edges");
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  const width = byId("scroller").clientWidth;
  const {height} = graph.layout;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.setProperty("width", `${width}px`);
    canvas.style.setProperty("height", `${height}px`);
  }
  return {canvas, scale, width};
}

function drawEdges() {
  const {canvas, scale, width} = fitCanvas();
  const left = byId("scroller").scrollLeft;
  canvas.style.setProperty("left", `${left}px`);
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(scale, 0, 0, scale, -left * scale, 0);
  pen.globalCompositeOperation = "destination-over";
  const {lit, rest, isFaded, scale: sizes} = graph.drawn;
  const colours = {positive: css("--positive"), negative: css("--negative")};
  const queue = [...lit.map((edge) => [edge, "lit", sizes.lit]), ...rest.map((edge) => [edge, isFaded ? "faded" : "plain", sizes.rest])];
  Object.assign(canvas.dataset, {lit: lit.length, rest: rest.length, done: ""});
  drawing += 1;
  strokeSome(pen, queue, 0, colours, [left, left + width], drawing);
}

function strokeSome(pen, queue, start, colours, [left, right], turn) {
  const stop = Math.min(start + A_FRAME, queue.length);
  for (const [edge, look, largest] of queue.slice(start, stop)) {
    const points = edgePoints(edge);
    if (Math.max(points[0], points[6]) < left || Math.min(points[0], points[6]) > right) continue;
    strokeEdge(pen, edge, points, look, largest, colours, queue.length <= MOST_DASHED || look === "lit");
  }
  if (stop === queue.length) byId("edges").dataset.done = String(queue.length);
  else requestAnimationFrame(() => { if (turn === drawing) strokeSome(pen, queue, stop, colours, [left, right], turn); });
}

const edgeWidth = (edge, largest) => 0.7 + 4.3 * Math.min(edge.size / largest, 1);

function strokeEdge(pen, edge, [x0, y0, ...rest], look, largest, colours, isDashed) {
  const width = edgeWidth(edge, largest);
  const isNegative = edge.weight < 0;
  pen.globalAlpha = LOOKS[look];
  pen.lineWidth = width;
  pen.strokeStyle = isNegative ? colours.negative : colours.positive;
  pen.setLineDash(isNegative && isDashed ? [4 + 1.8 * width, 2.4 + 0.7 * width] : []);
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.bezierCurveTo(...rest);
  pen.stroke();
}

// The lit edge under the pointer, if one is.
function edgeAt(x, y) {
  const pen = byId("edges").getContext("2d");
  pen.save();
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.setLineDash([]);
  const found = graph.drawn.lit.slice(0, 400).find((edge) => {
    pen.lineWidth = edgeWidth(edge, graph.drawn.scale.lit) + 6;
    return pen.isPointInStroke(edgeCurve(edge), x, y);
  });
  pen.restore();
  return found || null;
}

const headText = (heads) => (heads || []).map(([name, share]) => `${name} ${percent(share)}`).join(", ");
