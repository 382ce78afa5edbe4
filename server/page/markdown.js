// Markdown as models write it, made into elements one by one. What is not Markdown is text, HTML too.

import { copyButton, el } from "./dom.js";
import { PLACEHOLDER } from "./boxes.js";

const LONGEST = 200_000; // characters; beyond them an answer is shown as it came
const LONGEST_BLOCK = 20_000; // characters of one paragraph; beyond them it has no bold words and links
const DEEPEST = 8; // quotes and lists in each other; beyond them they are text
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.+?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(\s+|$)/;
const TABLE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE = new RegExp(
  [
    String.raw`(?<code>(?<ticks>\`+)(?<inside>[^\`]|[^\`][^]*?[^\`])\k<ticks>(?!\`))`,
    String.raw`(?<link>!?\[(?<name>[^\[\]]*)\]\((?<target>[^\s()<>]+(?:\([^\s()]*\))?)(?:\s+"[^"]*")?\))`,
    String.raw`(?<bold>\*\*(?=\S)(?<strong>[^]+?)(?<=\S)\*\*)`,
    String.raw`(?<slanted>(?<![\w*])(?<star>[*_])(?=\S)(?<em>[^*_]+?)(?<=\S)\k<star>(?![\w*]))`,
    String.raw`(?<bare>https?:\/\/[^\s<>()"']+[^\s<>()"'.,;:!?])`,
    `(?<mention>${PLACEHOLDER.source})`,
    String.raw`\\(?<escaped>[\\\`*_{}\[\]()#+\-.!|>~])`,
  ].join("|"),
  "g",
);

/**
 * An answer as elements.
 *
 * @param {string} text Markdown, with placeholders where it points at something.
 * @param {(index: number) => Node} mention Makes what stands for a placeholder.
 * @returns {Node[]}
 */
export function markdown(text, mention) {
  if (text.length > LONGEST) return [el("pre", { class: "plain" }, text)];
  return blocks(text.split(/\r\n|\r|\n/), mention, 0);
}

function blocks(lines, mention, depth) {
  const made = [];
  let paragraph = [];
  const end = () => {
    if (paragraph.length) made.push(el("p", {}, ...broken(paragraph, mention)));
    paragraph = [];
  };
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    const block = depth < DEEPEST ? beginning(lines, i, paragraph.length > 0) : null;
    if (!line.trim()) {
      end();
      i += 1;
    } else if (block === null) {
      paragraph.push(line);
      i += 1;
    } else {
      end();
      const [element, next] = block(lines, i, mention, depth);
      made.push(element);
      i = next;
    }
  }
  end();
  return made;
}

/** What makes the block that begins at a line, or null where it is text. */
function beginning(lines, i, isInParagraph) {
  const line = lines[i];
  if (FENCE.test(line)) return code;
  if (HEADING.test(line)) return heading;
  if (RULE.test(line)) return (_, at) => [el("hr"), at + 1];
  if (QUOTE.test(line)) return quote;
  const item = ITEM.exec(line);
  // A number in the middle of a paragraph is one that happens to begin a line.
  if (item && (!isInParagraph || !/^\d/.test(item[2]))) return list;
  if (line.includes("|") && i + 1 < lines.length && TABLE.test(lines[i + 1]) && lines[i + 1].includes("-")) {
    return cells(line).length === cells(lines[i + 1]).length ? table : null;
  }
  return null;
}

function code(lines, at) {
  const [, fence, language] = FENCE.exec(lines[at]);
  const closing = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  const head = el("div", { class: "code-head" }, el("span", {}, language || "text"), copyButton("Copy code", () => text));
  return [el("div", { class: "code" }, head, el("pre", { tabindex: "0" }, el("code", {}, text))), end + 1];
}

function heading(lines, at, mention) {
  const [, marks, text] = HEADING.exec(lines[at]);
  // The page's own headings are the first two levels.
  return [el(`h${Math.min(6, marks.length + 2)}`, {}, ...inline(text, mention)), at + 1];
}

function quote(lines, at, mention, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [el("blockquote", {}, ...blocks(inside, mention, depth + 1)), end];
}

function list(lines, at, mention, depth) {
  const first = ITEM.exec(lines[at]);
  const isNumbered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || /\d/.test(item[2]) !== isNumbered || RULE.test(lines[end])) break;
    const indent = item[0].length;
    const inside = [lines[end].slice(indent)];
    end += 1;
    while (end < lines.length) {
      const isDeeper = /^\s/.test(lines[end]) && lines[end].search(/\S/) > item[1].length;
      const isGap = !lines[end].trim() && /^\s+\S/.test(lines[end + 1] ?? "") && !ITEM.test(lines[end + 1]);
      const isLazy = lines[end].trim() && !ITEM.test(lines[end]) && inside.at(-1).trim() && beginning(lines, end, true) === null;
      if (!isDeeper && !isGap && !isLazy) break;
      inside.push(lines[end].replace(new RegExp(`^\\s{0,${Math.max(2, indent)}}`), ""));
      end += 1;
    }
    const made = blocks(inside, mention, depth + 1);
    const isTight = made.length && made[0].tagName === "P";
    items.push(el("li", {}, ...(isTight ? [...made[0].childNodes] : []), ...(isTight ? made.slice(1) : made)));
    while (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? "")) end += 1;
  }
  const start = isNumbered ? Number.parseInt(first[2], 10) : 1;
  return [el(isNumbered ? "ol" : "ul", start === 1 ? {} : { start }, ...items), end];
}

function table(lines, at, mention) {
  const columns = cells(lines[at]);
  const row = (tag, texts) => el("tr", {}, ...columns.map((_, i) => el(tag, tag === "th" ? { scope: "col" } : {}, ...inline(texts[i] ?? "", mention))));
  let end = at + 2;
  const rows = [];
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) rows.push(cells(lines[end++]));
  const head = el("thead", {}, row("th", columns));
  const body = el("tbody", {}, ...rows.map((texts) => row("td", texts)));
  return [el("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, el("table", {}, head, body)), end];
}

function cells(line) {
  const bare = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return bare.split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function broken(lines, mention) {
  return lines.flatMap((line, i) => {
    const text = inline(line.trim(), mention);
    return i + 1 < lines.length ? [...text, /( {2,}|\\)$/.test(line) ? el("br") : "\n"] : text;
  });
}

/** Text with code, links, bold and slanted words in it. */
function inline(text, mention, depth = 0) {
  if (text.length > LONGEST_BLOCK) return [text];
  const made = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    const found = match.groups;
    if (match.index > last) made.push(text.slice(last, match.index));
    last = match.index + match[0].length;
    const deeper = (inside) => (depth < DEEPEST ? inline(inside, mention, depth + 1) : [inside]);
    if (found.code) made.push(el("code", {}, found.inside));
    else if (found.link) made.push(...link(match[0], found.name, found.target, deeper));
    else if (found.bold) made.push(el("strong", {}, ...deeper(found.strong)));
    else if (found.slanted) made.push(el("em", {}, ...deeper(found.em)));
    else if (found.bare) made.push(...link(match[0], match[0], match[0], (name) => [name]));
    else if (found.mention) made.push(mention(Number(PLACEHOLDER.exec(match[0])[1])));
    else made.push(found.escaped);
  }
  if (last < text.length) made.push(text.slice(last));
  return made;
}

/** A link to the web with its host behind it, so that nobody is led astray; anything else is text. */
function link(source, name, target, deeper) {
  if (source.startsWith("!")) return [source]; // a picture from elsewhere would tell that it was seen
  let url;
  try {
    url = new URL(target);
  } catch {
    return [source];
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol) || url.username) return [source];
  const shown = url.protocol === "mailto:" ? url.pathname : url.host;
  const attributes = { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const host = name.includes(shown) ? null : el("span", { class: "host" }, ` (${shown})`);
  return [el("a", attributes, ...deeper(name)), host].filter(Boolean);
}
