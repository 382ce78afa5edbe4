// What a conversation looks like.

import { readBoxes, nameOf, plainText } from "./boxes.js";
import { button, copyButton, el } from "./dom.js";
import { markdown } from "./markdown.js";
import { pointed, shown } from "./pictures.js";
import { isVideo, player } from "./videos.js";

/**
 * A message.
 *
 * @param {object} message What was said, with what became of it.
 * @param {object|null} picture The last picture before it, which an answer points into.
 * @param {object} can What may be done with it: `retry`, `edit`, or neither.
 */
export function messageView(message, picture, can) {
  const isUser = message.role === "user";
  const article = el("article", { class: `message ${message.role}`, "aria-label": isUser ? "You" : "Answer" });
  article.append(isUser ? questionBody(message) : answerBody(message, picture));
  const tools = el("div", { class: "tools" });
  if (!isUser) tools.append(el("p", { class: "figures" }, figures(message)));
  const text = () => (isUser ? message.text : plainText(message.text));
  if (message.text) tools.append(copyButton(isUser ? "Copy question" : "Copy answer", text));
  if (can.edit) tools.append(button("edit", "Edit question", can.edit));
  if (can.retry) tools.append(button("retry", "Answer again", can.retry));
  article.append(tools);
  return article;
}

function questionBody({ text, pictures = [] }) {
  const images = pictures.map((picture) => (isVideo(picture) ? player(picture) : shown(picture, picture.name)));
  return el(
    "div",
    { class: "body" },
    images.length ? el("div", { class: "pictures" }, ...images) : null,
    text ? el("p", { class: "said" }, text) : null,
  );
}

/** The answer itself; called again while it grows. */
export function answerBody(message, picture) {
  const isWhole = !message.isGrowing;
  const { text, mentions } = readBoxes(message.text, isWhole);
  const body = el("div", { class: "body" });
  const light = (index, isOn) => {
    for (const shape of body.querySelectorAll(".shape")) {
      shape.classList.toggle("faint", isOn && shape.dataset.mention !== String(index));
    }
  };
  const chip = (index) => {
    const mention = mentions[index];
    if (mention === undefined) return "";
    if (!mention.shapes.length) return el("span", {}, nameOf(mention));
    const made = el(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-label": `${nameOf(mention)}: ${placed(mention)}`,
        pointerenter: () => light(index, true),
        pointerleave: () => light(index, false),
        focus: () => light(index, true),
        blur: () => light(index, false),
      },
      nameOf(mention),
    );
    made.style.setProperty("--mark", `rgb(${mention.color.join(" ")})`);
    return made;
  };
  body.append(...markdown(text, chip));
  if (message.isGrowing && !message.text) body.append(el("p", { class: "waiting" }, message.progress ?? "Looking …"));
  if (isWhole && picture && mentions.some(({ shapes }) => shapes.length)) body.append(pointed(picture, mentions));
  if (message.error) body.append(el("p", { class: "error", role: "alert" }, message.error));
  return body;
}

function placed({ shapes }) {
  const share = (value) => `${Math.round(value / 10)} %`;
  return shapes
    .map(({ points }) => {
      const middle = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
      return `${share(middle[0])} from the left, ${share(middle[1])} from the top`;
    })
    .join("; ");
}

/** Counts and times of an answer, in a line. */
export function figures({ usage, timings, isStopped, finish, isGrowing }) {
  const parts = [];
  if (isGrowing) return "";
  if (isStopped) parts.push("stopped");
  if (finish === "length") parts.push("cut off at the limit of tokens");
  if (timings?.predicted_per_second > 0) parts.push(`${timings.predicted_per_second.toFixed(0)} tokens/s`);
  if (timings?.first_s !== undefined) parts.push(`first token after ${timings.first_s.toFixed(2)} s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${usage.prompt_tokens} prompt tokens${cached ? `, ${cached} cached` : ""}`);
    parts.push(`${usage.completion_tokens} answer tokens`);
  }
  return parts.join(" · ");
}

/** The list of conversations. */
export function listView(conversations, current, { choose, rename, remove }) {
  return conversations.map((conversation) => {
    const isCurrent = conversation.id === current.id;
    const title = conversation.title || "New conversation";
    return el(
      "li",
      { class: isCurrent ? "current" : null },
      el(
        "button",
        { type: "button", class: "title", "aria-current": isCurrent ? "true" : null, click: () => choose(conversation) },
        title,
      ),
      button("edit", `Rename ${title}`, () => rename(conversation)),
      button("remove", `Delete ${title}`, () => remove(conversation)),
    );
  });
}
