// One conversation while it goes on: what is sent, and how an answer is heard.

import { plainText } from "./boxes.js";
import { answer, Refused } from "./api.js";
import { dataUrl } from "./store.js";
import { isVideo, tooMuch } from "./videos.js";

const LONGEST_TITLE = 48; // characters

/** The messages of a conversation as OpenAI's API takes them. */
export async function sent(messages, system) {
  const told = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, pictures = [] } of messages) {
    if (role === "assistant") {
      if (text) told.push({ role, content: text });
      continue;
    }
    const parts = [];
    for (const picture of pictures) {
      const kind = isVideo(picture) ? "video_url" : "image_url";
      parts.push({ type: kind, [kind]: { url: await dataUrl(picture.blob) } });
    }
    parts.push({ type: "text", text });
    told.push({ role, content: pictures.length ? parts : text });
  }
  return told;
}

/**
 * Hear the answer to a conversation; it grows in the message that is given.
 *
 * @param {object} message Of the assistant, empty so far.
 * @param {object[]} before The messages before it.
 * @param {object} settings What a person set.
 * @param {object|undefined} limits The server's, where they are known.
 * @param {AbortSignal} signal Stops it; what came stays.
 * @param {() => void} changed Called after every piece.
 * @returns {Promise<Refused|null>} Why it did not come whole, or null.
 */
export async function hear(message, before, settings, limits, signal, changed) {
  const began = performance.now();
  let trouble = null;
  message.isGrowing = true;
  try {
    const told = tooMuch(before, limits);
    if (told) throw new Refused(told, 413);
    const body = { ...settings.sampling, messages: await sent(before, settings.system) };
    const reading = (done, total) => {
      message.progress = `Reading, ${done} of ${total} tokens`;
      changed();
    };
    for await (const chunk of answer(body, signal, reading)) {
      const choice = chunk.choices?.[0];
      const text = choice?.delta?.content ?? "";
      if (text && !message.text) message.timings = { first_s: (performance.now() - began) / 1000 };
      message.text += text;
      if (choice?.finish_reason) message.finish = choice.finish_reason;
      if (chunk.usage) message.usage = chunk.usage;
      if (chunk.timings) message.timings = { ...chunk.timings, first_s: message.timings?.first_s };
      if (text) changed();
    }
  } catch (error) {
    if (signal.aborted) message.isStopped = true;
    else {
      trouble = error instanceof Refused ? error : new Refused(`The answer could not be read: ${error.message}`, 0);
      message.error = trouble.message;
    }
  } finally {
    delete message.isGrowing;
    delete message.progress;
  }
  changed();
  return trouble;
}

/** A title for a conversation, of its first question. */
export function titleOf(messages) {
  const first = messages.find(({ role }) => role === "user");
  const text = plainText(first?.text ?? "").replace(/\s+/g, " ").trim() || (first?.pictures?.[0]?.name ?? "");
  return text.length > LONGEST_TITLE ? `${text.slice(0, LONGEST_TITLE - 1)}…` : text;
}

/** The last picture up to a message, which its answer points into; null where a video was shown last. */
export function pictureBefore(messages, index) {
  for (let i = index; i >= 0; i -= 1) {
    const { pictures = [] } = messages[i];
    if (pictures.length) return pictures.findLast((picture) => !isVideo(picture)) ?? null;
  }
  return null;
}
