// What an answer points at, read from its text as mlx_qwenvl/grounding/boxes.py reads it.
//
// A mark becomes a placeholder of two noncharacters with a number between them, so that Markdown around
// it sees no `|` and no `_`. Unicode keeps noncharacters for such use within a program.

const NUMBER = String.raw`\d{1,4}(?:\.\d{1,4})?`;
const POINT = String.raw`\(\s*${NUMBER}\s*,\s*${NUMBER}\s*\)`;
const POINTS = String.raw`${POINT}(?:\s*,\s*${POINT}){0,3}`;
const LABEL = String.raw`<\|object_ref_start\|>(?<label>[^<]*(?:<(?!\|)[^<]*)*)<\|object_ref_end\|>`;
const SHAPE = String.raw`<\|(?<mark>box|quad)_start\|>\s*(?<points>${POINTS})\s*<\|\k<mark>_end\|>`;
const MARKED = new RegExp(`${LABEL}|${SHAPE}`, "g");
const PAIR = new RegExp(String.raw`\(\s*(${NUMBER})\s*,\s*(${NUMBER})\s*\)`, "g");
const NONCHARACTERS = /[\uFDD0-\uFDEF]/g;
const MARKS = ["object_ref", "box", "quad"].flatMap((name) => [`<|${name}_start|>`, `<|${name}_end|>`]);
const LONGEST_LABEL = 300; // characters; beyond them a mark that is not closed is no mark
const FRAME = 1000; // units of the model's frame on both axes, whatever the picture's shape

export const PLACEHOLDER = /\uFDD0(\d+)\uFDD1/;

// Colours that people with any colour vision tell apart (Okabe and Ito), as in grounding/draw.py.
export const COLORS = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 158, 115],
  [240, 228, 66],
  [0, 114, 178],
  [213, 94, 0],
  [204, 121, 167],
];

/**
 * Reads an answer.
 *
 * @param {string} text What the model wrote.
 * @param {boolean} isWhole False while more may follow: a mark that is not finished is then held back.
 * @returns {{text: string, mentions: Array}} The text with placeholders, and what each stands for: a
 *   `label` ("" for none), a `color` and `shapes` with their `kind` and `points` in 0..1000.
 */
export function readBoxes(text, isWhole = true) {
  const clean = text.replace(NONCHARACTERS, "\uFFFD");
  const shown = isWhole ? clean : clean.slice(0, endOfFinished(clean));
  const mentions = [];
  const colors = new Map();
  let label = "";
  let pieces = "";
  let last = 0;
  let fresh = null; // the mention that the next shape belongs to, if nothing stands between
  for (const match of shown.matchAll(MARKED)) {
    const between = shown.slice(last, match.index);
    if (match.groups.mark === undefined) {
      pieces += between;
      label = match.groups.label.trim();
      fresh = { label, shapes: [] };
      mentions.push(fresh);
      pieces += `\uFDD0${mentions.length - 1}\uFDD1`;
    } else {
      const shape = shapeOf(match.groups.mark, match.groups.points);
      if (shape === null) {
        pieces += between + match[0];
        fresh = null;
      } else {
        if (fresh === null || between.trim()) {
          pieces += between;
          fresh = { label, shapes: [] };
          mentions.push(fresh);
          pieces += `\uFDD0${mentions.length - 1}\uFDD1`;
        }
        if (!colors.has(label)) colors.set(label, COLORS[colors.size % COLORS.length]);
        fresh.shapes.push(shape);
      }
    }
    last = match.index + match[0].length;
  }
  for (const mention of mentions) mention.color = colors.get(mention.label) ?? COLORS[0];
  return { text: pieces + shown.slice(last), mentions };
}

/** The answer as people read it, without marks and coordinates. */
export function plainText(text) {
  const { text: marked, mentions } = readBoxes(text);
  return marked.replace(new RegExp(PLACEHOLDER, "g"), (_, index) => nameOf(mentions[index]));
}

/** What a mention is called where it is not drawn. */
export function nameOf(mention) {
  if (mention.label) return mention.label;
  return mention.shapes[0]?.kind === "point" ? "this point" : "this place";
}

/** What the points make, or null for what the marks do not allow or the frame does not hold. */
function shapeOf(mark, text) {
  const points = [...text.matchAll(PAIR)].map(([, x, y]) => [Number(x), Number(y)]);
  if (points.flat().some((value) => value > FRAME)) return null;
  if (points.length === 1) return { kind: "point", points };
  if (mark === "quad") return points.length === 4 ? { kind: "quad", points } : null;
  if (points.length !== 2) return null;
  const [[left, top], [right, bottom]] = points;
  return left <= right && top <= bottom ? { kind: "box", points } : null;
}

/** How much of a text that still grows can be shown: all but a mark that has only begun. */
function endOfFinished(text) {
  const open = text.lastIndexOf("<");
  if (open >= 0 && MARKS.some((mark) => mark.startsWith(text.slice(open)))) {
    return beginOfOpen(text.slice(0, open));
  }
  return beginOfOpen(text);
}

function beginOfOpen(text) {
  const tail = Math.max(0, text.length - LONGEST_LABEL);
  const open = text.lastIndexOf("_start|>");
  const begin = text.lastIndexOf("<|", open);
  if (open < tail || begin < 0 || !MARKS.some((mark) => text.startsWith(mark, begin))) return text.length;
  const inside = text.slice(open + "_start|>".length);
  const isLabel = text.startsWith("<|object_ref", begin);
  const canGoOn = isLabel ? !inside.includes("<|") : /^[\s\d.,()]*$/.test(inside);
  return canGoOn ? begin : text.length;
}
