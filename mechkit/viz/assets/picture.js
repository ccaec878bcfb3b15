// The figure as a PNG: edges, marks, names and a heading painted on one canvas at twice the size.

const PICTURE = {scale: 2, margin: 24, head: 56, left: 110, most: 16000};

function savePng() {
  const {width, height} = graph.layout;
  const w = width + PICTURE.left + PICTURE.margin;
  const h = height + PICTURE.head + PICTURE.margin;
  const scale = Math.min(PICTURE.scale, PICTURE.most / w, PICTURE.most / h);
  const canvas = html("canvas", {width: Math.round(w * scale), height: Math.round(h * scale)});
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.fillStyle = css("--card");
  pen.fillRect(0, 0, w, h);
  paintHeading(pen);
  pen.translate(PICTURE.left, PICTURE.head);
  paintGround(pen);
  const colours = {positive: css("--positive"), negative: css("--negative")};
  const {lit, rest, isFaded, scale: sizes} = graph.drawn;
  for (const edge of [...rest].reverse()) strokeEdge(pen, edge, edgePoints(edge), isFaded ? "faded" : "plain", sizes.rest, colours, true);
  for (const edge of [...lit].reverse()) strokeEdge(pen, edge, edgePoints(edge), "lit", sizes.lit, colours, true);
  pen.setLineDash([]);
  for (const node of graph.list) if (node.isShown) paintMark(pen, node, graph.layout.places.get(node.id));
  canvas.toBlob((blob) => {
    download(blob, fileName("png"));
    say("Picture saved.");
  }, "image/png");
}

function paintText(pen, text, x, y, font, colour, align = "left") {
  Object.assign(pen, {font, fillStyle: colour, textAlign: align, textBaseline: "middle", globalAlpha: 1});
  pen.fillText(text, x, y);
}

function paintHeading(pen) {
  const answer = graph.answer ? ` → ${visible(graph.answer.name)}` : "";
  paintText(pen, shorten(graph.tokens.map(visible).join(" ") + answer, graph.layout.width, "600 16px ui-monospace, monospace"), PICTURE.margin, 28, "600 16px ui-monospace, monospace", css("--ink"));
}

function paintGround(pen) {
  const {columns, rows, trays, bottom} = graph.layout;
  pen.fillStyle = css("--tray");
  for (const tray of trays) {
    pen.beginPath();
    pen.roundRect(tray.x, tray.y, tray.w, tray.h, 9);
    pen.fill();
  }
  for (const row of thinned(rows)) paintText(pen, row.name, -14, row.y + row.h / 2, "600 12px system-ui, sans-serif", css("--muted"), "right");
  for (const column of columns) paintText(pen, shorten(column.token, column.w - 2, MONO), column.x + column.w / 2, bottom + 18, "600 12px ui-monospace, monospace", css("--ink"), "center");
}

function paintMark(pen, node, place) {
  const item = graph.categories.get(category(node));
  const isFaded = graph.focus !== null && !graph.focus.ids.has(node.id);
  pen.save();
  pen.globalAlpha = isFaded ? 0.13 : 1;
  pen.translate(place.x, place.y);
  pen.lineWidth = 1;
  pen.fillStyle = item.hollow ? css("--card") : css(item.colour);
  pen.strokeStyle = item.hollow ? css(item.colour) : css("--mark-edge");
  if (place.text === null) {
    const shape = new Path2D();
    shape.addPath(new Path2D(SHAPES[node.kind]), new DOMMatrix().scale(place.r));
    pen.fill(shape);
    pen.stroke(shape);
  } else {
    pen.beginPath();
    pen.roundRect(-place.w / 2, -place.h / 2, place.w, place.h, place.h / 2);
    pen.fill();
    paintText(pen, place.text, 0, 1, MONO, css("--pill-text"), "center");
  }
  pen.restore();
}
