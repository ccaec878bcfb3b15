// Building the page: every text goes in as a text node, never as markup.

function builder(namespace) {
  return (tag, attributes = {}, ...children) => {
    const node = document.createElementNS(namespace, tag);
    for (const [name, value] of Object.entries(attributes)) setAttribute(node, name, value);
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  };
}

function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) return;
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "css") for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
  else node.setAttribute(name, value === true ? "" : value);
}

const html = builder("http://www.w3.org/1999/xhtml");
const svg = builder("http://www.w3.org/2000/svg");
const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const sum = (numbers) => numbers.reduce((total, item) => total + item, 0);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function number(value) {
  if (!isNumber(value)) return value === null || value === undefined ? "n/a" : String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? size.toExponential(1) : size >= 100 ? size.toFixed(0) : size.toPrecision(3);
  return (value < 0 ? "−" : "") + text;
}

const signed = (value) => (value > 0 ? "+" : "") + number(value);

function percent(value) {
  if (!isNumber(value)) return "n/a";
  const share = value * 100;
  if (share !== 0 && Math.abs(share) < 0.1) return (share < 0 ? "−" : "") + "<0.1 %".slice(share < 0 ? 1 : 0);
  return `${(Math.abs(share) >= 99.95 || share === 0 ? share.toFixed(0) : share.toFixed(1)).replace("-", "−")} %`;
}

// A token as it can be seen: spaces at its ends and line breaks have a sign.
const visible = (token) =>
  String(token).replace(/^ | $/g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";

const ruler = document.createElement("canvas").getContext("2d");

function textWidth(text, font) {
  ruler.font = font;
  return ruler.measureText(text).width;
}

function shorten(text, width, font) {
  if (textWidth(text, font) <= width) return text;
  const letters = Array.from(text);
  while (letters.length > 1 && textWidth(`${letters.join("")}…`, font) > width) letters.pop();
  return `${letters.join("")}…`;
}
