// Pictures that a person picks, drops or pastes, and what an answer points at drawn over them.

import { draw, el } from "./dom.js";

const MOST_PIXELS = 8_000_000; // the model sees far fewer; larger photos only take longer to send
const MOST_BYTES = 12 * 2 ** 20; // of one picture as it is sent
const QUALITY = 0.92; // of the JPEG that a larger picture becomes

/**
 * A file as it will be sent.
 *
 * @param {File} file Whatever was given; the server decides what is a picture.
 * @returns {Promise<{name: string, blob: Blob}>}
 */
export async function takeIn(file) {
  const name = file.name || "picture";
  let bitmap = null;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    // The browser does not know the format, as HEIC; the server may.
    if (!file.type.startsWith("image/") && !/\.hei[cf]$/i.test(name)) throw new Error(`${name} is neither a picture nor a video.`);
    if (file.size > MOST_BYTES) throw new Error(`${name} is too large to be sent as it is.`);
    return { name, blob: file };
  }
  const { width, height } = bitmap;
  if (width * height <= MOST_PIXELS && file.size <= MOST_BYTES) {
    bitmap.close();
    return { name, blob: file };
  }
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const canvas = el("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  if (blob === null) throw new Error(`${name} is too large for this browser.`);
  return { name, blob };
}

/** The files of a drop or a paste. */
export function filesOf(transfer) {
  return [...(transfer?.files ?? [])];
}

/** A picture drawn here, for people who have none at hand: a red circle and a blue square. */
export function sample() {
  const canvas = el("canvas");
  canvas.width = canvas.height = 448;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#f8f8f8";
  pen.fillRect(0, 0, 448, 448);
  pen.fillStyle = "rgb(220, 30, 30)";
  pen.beginPath();
  pen.arc(79, 79, 58, 0, 2 * Math.PI); // in the top left ninth, as the embedded model knows it
  pen.fill();
  pen.fillStyle = "rgb(40, 70, 225)";
  pen.fillRect(316, 318, 98, 98);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve({ name: "shapes.png", blob }), "image/png"));
}

/** An image element of a stored picture, or its name where the browser cannot show it. */
export function shown({ name, blob }, alt) {
  const url = URL.createObjectURL(blob);
  const image = el("img", { src: url, alt, title: name });
  image.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  image.addEventListener("error", () => image.replaceWith(el("span", { class: "unshown" }, name)), { once: true });
  return image;
}

const rgb = (color) => `rgb(${color.join(" ")})`;

/**
 * A picture with what an answer points at drawn over it.
 *
 * @param {{name: string, blob: Blob}} picture The picture.
 * @param {Array} mentions From `readBoxes`.
 * @returns {HTMLElement}
 */
export function pointed(picture, mentions) {
  const names = mentions.filter(({ shapes }) => shapes.length).map(({ label }) => label || "a place");
  const image = shown(picture, `${picture.name}, with ${names.join(", ")} marked`);
  const frame = el("div", { class: "pointed" }, image);
  image.addEventListener("load", () => frame.append(overlay(image.naturalWidth, image.naturalHeight, mentions)), {
    once: true,
  });
  return el("figure", {}, frame);
}

function overlay(width, height, mentions) {
  const unit = Math.max(width, height) / 320; // what is one pixel wide at the size it is shown at
  const layer = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  mentions.forEach(({ label, color, shapes }, index) => {
    for (const { kind, points } of shapes) {
      const corners = points.map(([x, y]) => [(x * width) / 1000, (y * height) / 1000]);
      const group = draw("g", { "data-mention": index, class: "shape" });
      for (const [stroke, size] of [["#000", 3.4 * unit], [rgb(color), 2.2 * unit]]) {
        group.append(outline(kind, corners, stroke, size));
      }
      if (label) group.append(...plate(label, corners, rgb(color), 11 * unit, width));
      layer.append(group);
    }
  });
  return layer;
}

function outline(kind, corners, stroke, size) {
  const line = { fill: "none", stroke, "stroke-width": size, "stroke-linejoin": "round" };
  if (kind === "point") {
    const [[cx, cy]] = corners;
    return draw("circle", { cx, cy, r: 1.4 * size, fill: stroke });
  }
  if (kind === "quad") return draw("polygon", { ...line, points: corners.join(" ") });
  const [[x, y], [right, bottom]] = corners;
  return draw("rect", { ...line, x, y, width: right - x, height: bottom - y });
}

function plate(label, corners, color, size, width) {
  const text = label.length > 24 ? `${label.slice(0, 23)}…` : label;
  const long = Math.min(width, (text.length * 0.58 + 0.8) * size);
  const top = Math.min(...corners.map(([, y]) => y));
  const x = Math.max(0, Math.min(Math.min(...corners.map(([left]) => left)), width - long));
  const y = top > 1.5 * size ? top - 1.4 * size : top;
  const middle = { x: x + 0.4 * size, y: y + size, "font-size": size, textLength: long - 0.8 * size, lengthAdjust: "spacingAndGlyphs" };
  return [draw("rect", { x, y, width: long, height: 1.4 * size, fill: color }), draw("text", middle, text)];
}
