// Videos that a person picks, drops or pastes: sent as they are, and played where they are shown.

import { el, icon } from "./dom.js";

const ENDINGS = /\.(3gp|avi|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|ogv|ts|webm)$/i;
const BASE64 = 4 / 3; // characters of a byte as it is sent
const WORDS_BYTES = 2 ** 16; // of a request beside its pictures and videos
const FIRST_LOOK = "#t=0.01"; // or phones show nothing before it is played

/** Whether a file calls itself a video; the server decides what is one. */
export function isVideoFile({ name, type }) {
  return type.startsWith("video/") || (!type.startsWith("image/") && ENDINGS.test(name ?? ""));
}

/** Whether something that was taken in is a video. */
export function isVideo({ blob }) {
  return blob.type.startsWith("video/");
}

/**
 * A video file as it will be sent.
 *
 * @param {File} file Whatever was given.
 * @param {object|undefined} limits The server's, where it is known.
 * @returns {{name: string, blob: Blob}}
 */
export function takeInVideo(file, limits) {
  const name = file.name || "video";
  if (limits) {
    if (limits.max_videos === 0) throw new Error(`${name}: this server takes no videos.`);
    if (limits.video_fault) throw new Error(`${name}: this server cannot decode videos: ${limits.video_fault}`);
    const most = Math.min(limits.max_video_bytes, (limits.max_body_bytes - WORDS_BYTES) / BASE64);
    if (file.size > most) {
      throw new Error(
        `${name} has ${inWords(file.size, Math.ceil)}; this server takes videos of at most ${inWords(most, Math.floor)} from this page. ` +
          "A shorter one may pass.",
      );
    }
  }
  if (file.type.startsWith("video/")) return { name, blob: file };
  const kind = (ENDINGS.exec(name)?.[1] ?? "mp4").toLowerCase();
  return { name, blob: file.slice(0, file.size, `video/${kind}`) };
}

/** Why what a conversation shows is too much for one request, or null. */
export function tooMuch(messages, limits) {
  if (!limits) return null;
  const bytes = messages.flatMap(({ pictures = [] }) => pictures).reduce((sum, { blob }) => sum + blob.size, 0);
  const most = (limits.max_body_bytes - WORDS_BYTES) / BASE64;
  if (bytes <= most) return null;
  return (
    `The pictures and videos of this conversation have ${inWords(bytes, Math.ceil)}; ` +
    `this server takes at most ${inWords(most, Math.floor)} at once. Begin a new chat with fewer of them.`
  );
}

const players = new WeakMap(); // so that a video plays on when the page is drawn anew

/** What plays a video, or its name where the browser cannot play it. */
export function player(video) {
  const known = players.get(video);
  if (known) return known;
  const { name } = video;
  const film = moving(video, { controls: true, "aria-label": `Video ${name}` });
  const length = el("span");
  film.addEventListener("loadedmetadata", () => {
    if (Number.isFinite(film.duration)) length.textContent = ` · ${inMinutes(film.duration)}`;
  });
  const figure = el("figure", { class: "film" }, film, el("figcaption", {}, name, length));
  film.addEventListener("error", () => figure.replaceChildren(unplayed(name)), { once: true });
  players.set(video, figure);
  return figure;
}

/** A small still of a video, with its name. */
export function still(video) {
  const film = moving(video, { "aria-hidden": "true", tabindex: "-1" });
  const done = () => URL.revokeObjectURL(film.src.split("#")[0]);
  film.addEventListener("loadeddata", done, { once: true });
  film.addEventListener("error", () => (done(), film.remove()), { once: true });
  const words = el("span", {}, el("span", { class: "hidden" }, "Video "), video.name);
  return el("div", { class: "still", title: video.name }, film, el("p", {}, icon("play"), words));
}

/** Let go of what was made to show videos that are shown no more. */
export function letGo(pictures = []) {
  for (const picture of pictures) {
    const film = players.get(picture)?.querySelector("video");
    players.delete(picture);
    if (film) URL.revokeObjectURL(film.src.split("#")[0]);
  }
}

/** Draw a part of the page anew; videos in it that play go on. */
export function playingOn(parent, redraw) {
  const playing = [...parent.querySelectorAll("video")].filter((film) => !film.paused);
  redraw();
  for (const film of playing) if (film.isConnected) film.play().catch(() => {});
}

function moving({ blob }, properties) {
  const src = URL.createObjectURL(blob) + FIRST_LOOK;
  return el("video", { src, preload: "metadata", playsinline: true, ...properties });
}

function unplayed(name) {
  return el("span", { class: "unshown" }, `${name} (a video that this browser cannot play)`);
}

function inMinutes(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")} min`;
}

/** Bytes in words; what is there is rounded up and what is allowed down, so that they differ. */
function inWords(bytes, rounded) {
  return bytes < 1e5 ? `${rounded(bytes / 1e3)} kB` : `${(rounded(bytes / 1e5) / 10).toFixed(1)} MB`;
}
