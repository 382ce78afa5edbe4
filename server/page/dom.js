// Elements, made one by one. Nothing that a model, a file or a server says is ever read as HTML.

/**
 * An element. Functions become listeners, `true` an empty attribute, `false` and null none.
 * Children are elements or text; arrays are spread, null and false are left out.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Lines on a grid of 24 x 24.
const ICONS = {
  add: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  export: "M12 15V4M8 8l4-4 4 4M5 14v6h14v-6",
  import: "M12 4v11M8 11l4 4 4-4M5 14v6h14v-6",
  keys: "M3 7h18v10H3zM7 10.5h.01M11 10.5h.01M15 10.5h.01M8 14h8",
  link: "M8 8l-4 4 4 4M16 8l4 4-4 4M13.5 6l-3 12",
  menu: "M4 7h16M4 12h16M4 17h16",
  more: "M5 12l6 6M5 12l6-6M5 12h14",
  picture: "M4 5h16v14H4zM4 16l5-5 5 5M13 14l2.5-2.5L20 16M15.5 8.5h.01",
  play: "M8 5l11 7-11 7z",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  retry: "M19 12a7 7 0 1 1-2-5M19 4v4h-4",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5",
  stop: "M8 8h8v8H8z",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
};

/** A small drawing that says the same as the label beside it. */
export function icon(name) {
  return draw(
    "svg",
    { viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true", focusable: "false" },
    draw("path", { d: ICONS[name] }),
  );
}

/** A button with a drawing; its label is shown by `isWordy`, and always told. */
export function button(name, label, click, { isWordy = false, kind = "quiet" } = {}) {
  const words = isWordy ? { type: "button" } : { type: "button", "aria-label": label, title: label };
  return el("button", { ...words, class: kind, click }, icon(name), isWordy ? el("span", {}, label) : null);
}

/** Put text on the clipboard; pages that came by plain HTTP from another machine have no better way. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = el("textarea", { class: "hidden", "aria-hidden": "true" });
  field.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** A button that copies what `text()` gives, and says that it did. */
export function copyButton(label, text, options) {
  const made = button("copy", label, async () => {
    await copy(text());
    say("Copied");
    made.classList.add("done");
    setTimeout(() => made.classList.remove("done"), 1200);
  }, options);
  return made;
}

/** Tell screen readers something, once they have finished what they say. */
export function say(text) {
  const region = document.getElementById("told");
  region.replaceChildren();
  // An empty region first, or the same words twice would be told once.
  requestAnimationFrame(() => region.replaceChildren(text));
}

export const byId = (id) => document.getElementById(id);
