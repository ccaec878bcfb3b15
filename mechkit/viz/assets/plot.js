// The operand plot: activity over all pairs of operands, first operand up, second operand across.

const PLOT = {left: 36, bottom: 38, top: 6, right: 4};
const OVERSAMPLE = 5;

function ramp(stops) {
  const rgb = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({length: 256}, (_, level) => {
    const at = (level / 255) * (rgb.length - 1);
    const low = Math.min(Math.floor(at), rgb.length - 2);
    return rgb[low].map((value, channel) => Math.round(value + (rgb[low + 1][channel] - value) * (at - low)));
  });
}

const plotColours = () => ramp(css("--ramp").split(/\s+/));

async function readPlot(plot) {
  const image = new Image();
  image.src = plot.png;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}

// Enlarged sharply, so that drawing it at any size then leaves all cells equally wide.
function enlarge(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width * OVERSAMPLE;
  canvas.height = picture.height * OVERSAMPLE;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// The picture in colour, its first row at the bottom.
function colourIn(data, colours) {
  const {width, height} = data;
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  const out = pen.createImageData(width, height);
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const to = 4 * ((height - 1 - row) * width + column);
      out.data.set([...colours[data.data[4 * (row * width + column)]], 255], to);
    }
  }
  pen.putImageData(out, 0, 0);
  return canvas;
}

function drawAxes(pen, side, size, names) {
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = css("--muted");
  pen.strokeStyle = css("--line-strong");
  pen.lineWidth = 1;
  pen.strokeRect(PLOT.left - 0.5, PLOT.top - 0.5, side + 1, side + 1);
  const step = size > 20 ? Math.ceil(size / 50) * 10 : 5;
  for (let tick = 0; tick < size; tick += step) {
    const offset = ((tick + 0.5) / size) * side;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    pen.fillText(String(tick), PLOT.left + offset, PLOT.top + side + 6);
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillText(String(tick), PLOT.left - 6, PLOT.top + side - offset);
  }
  pen.fillStyle = css("--ink");
  pen.font = "italic 600 13px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "bottom";
  pen.fillText(names[1], PLOT.left + side / 2, PLOT.top + side + PLOT.bottom);
  pen.textAlign = "left";
  pen.textBaseline = "middle";
  pen.fillText(names[0], 0, PLOT.top + side / 2);
}

function markPair(pen, side, size, [a, b]) {
  const x = PLOT.left + ((b + 0.5) / size) * side;
  const y = PLOT.top + side - ((a + 0.5) / size) * side;
  for (const [colour, width] of [[css("--ring-back"), 4.5], [css("--ring"), 2]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.arc(x, y, 7, 0, 2 * Math.PI);
    pen.stroke();
  }
}

function paintPlot(canvas, data, operands) {
  const width = canvas.clientWidth;
  const side = width - PLOT.left - PLOT.right;
  const scale = window.devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = (side + PLOT.top + PLOT.bottom) * scale;
  canvas.style.setProperty("height", `${side + PLOT.top + PLOT.bottom}px`);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(enlarge(colourIn(data, plotColours())), PLOT.left, PLOT.top, side, side);
  drawAxes(pen, side, data.width, operands.names);
  if (operands.values) markPair(pen, side, data.width, operands.values);
  return side;
}

function pairAt(event, canvas, side, size) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left - PLOT.left) / side) * size);
  const row = Math.floor(((box.top + PLOT.top + side - event.clientY) / side) * size);
  return row >= 0 && row < size && column >= 0 && column < size ? [row, column] : null;
}

function colourBar(peak) {
  const stops = css("--ramp").split(/\s+/).join(", ");
  return html("div", {class: "colour-bar"}, "0",
    html("span", {css: {background: `linear-gradient(to right, ${stops})`}}), number(peak));
}

// The canvas, a line that reads the value under the pointer, and the colour scale.
function operandPlot(plot, given) {
  const operands = {names: given?.names || ["a", "b"], values: given?.values || null};
  const canvas = html("canvas", {class: "operand-plot", role: "img", "aria-label": `Activity over all pairs of ${operands.names.join(" and ")}`});
  const reading = html("p", {class: "reading", "aria-live": "off"});
  const block = html("div", {class: "plot"}, canvas, reading, colourBar(plot.max));
  const arrived = readPlot(plot).then((data) => {
    if (!canvas.isConnected) return;
    const side = paintPlot(canvas, data, operands);
    const say = (pair, where) => {
      const value = (data.data[4 * (pair[0] * data.width + pair[1])] / 255) * plot.max;
      reading.replaceChildren(`${where}${operands.names[0]} = ${pair[0]}, ${operands.names[1]} = ${pair[1]}: `, html("strong", {}, number(value)));
    };
    const rest = () => (operands.values ? say(operands.values, "This prompt, ") : reading.replaceChildren("Point at the plot to read a value."));
    canvas.addEventListener("pointermove", (event) => {
      const pair = pairAt(event, canvas, side, data.width);
      if (pair) say(pair, "");
      else rest();
    });
    canvas.addEventListener("pointerleave", rest);
    rest();
  });
  arrived.catch(() => reading.replaceChildren("The plot's picture could not be read."));
  return block;
}

// The plot alone, small, in colour; drawn when its picture has been read, and read once.
function thumbnail(node, side = 40) {
  const scale = window.devicePixelRatio || 1;
  const canvas = html("canvas", {class: "thumb", width: Math.round(side * scale), height: Math.round(side * scale), "aria-hidden": "true", css: {width: `${side}px`, height: `${side}px`}});
  node.picture ||= readPlot(node.plot);
  node.picture.then((data) => {
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(colourIn(data, plotColours()), 0, 0, canvas.width, canvas.height);
  }).catch(() => canvas.remove());
  return canvas;
}
