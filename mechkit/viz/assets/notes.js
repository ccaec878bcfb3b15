// What is known of a feature from text: names given to it, tokens it promotes and suppresses, and where it is strongest.

const SHOWN_EXAMPLES = 4;
const AROUND = 14;

function noteBlocks(notes) {
  if (!notes) return [];
  return [
    ...block("Known as", "", (notes.labels || []).map(([text, source]) => html("li", {}, text, source ? html("small", {}, source) : null)), "names"),
    ...tokensBlock("Promotes", notes.promoted), ...tokensBlock("Suppresses", notes.suppressed),
    ...block("Strongest on", "activation by token", (notes.examples || []).slice(0, SHOWN_EXAMPLES).map(example), "examples"),
  ];
}

const block = (title, note, items, kind) => (items.length === 0 ? [] : [heading(title, note), html("ul", {class: kind}, items)]);

const tokensBlock = (title, pairs) => block(title, "change of the token’s logit", (pairs || []).map(([token, value]) =>
  html("li", {title: signed(value)}, html("code", {}, visible(token)), html("small", {}, signed(value)))), "token-list");

// A stretch of text around the token where the feature is strongest, each token as dark as the feature is active on it.
function example(item) {
  const [tokens, activations, at] = Array.isArray(item) ? item : [item.tokens, item.activations, item.at];
  const start = Math.max(0, at - AROUND);
  const peak = Math.max(...activations, 1e-12);
  const words = tokens.slice(start, at + 6).map((token, i) => {
    const share = Math.max(0, activations[start + i] || 0) / peak;
    return html("span", {class: start + i === at ? "peak" : null, title: number(activations[start + i]), css: {"--heat": `${Math.round(share * 70)}%`}}, String(token).replace(/\n/g, "↵"));
  });
  return html("li", {}, start > 0 ? "…" : "", words);
}
