// The page: what is on it, and what happens when something is done to it.

import { key, look } from "./api.js";
import { button, byId, copyButton, el, say } from "./dom.js";
import { filesOf, sample, shown, takeIn } from "./pictures.js";
import { Settings } from "./settings.js";
import { exported, imported, newConversation, Store } from "./store.js";
import { hear, pictureBefore, titleOf } from "./talk.js";
import { isVideo, isVideoFile, letGo, playingOn, still, takeInVideo } from "./videos.js";
import { answerBody, listView, messageView } from "./view.js";

const LOOK_AGAIN_MS = 1000; // while the model is loaded, or the server is away
const question = byId("question");
const settings = new Settings();
const store = await Store.open();
let conversations = await store.list();
let current = conversations[0] ?? newConversation();
const removed = new WeakSet(); // conversations that were deleted
let attached = []; // pictures and videos of the question that is written
let running = null; // ends the answer that is heard
let server = null; // what runs there
let isWatched = false; // whether it is asked again and again already
let follows = true; // whether the end is kept in sight; whoever reads further up is left there

// --- The conversation -----------------------------------------------------------------------------

function show() {
  const { messages } = current;
  const shelf = byId("messages");
  playingOn(shelf, () =>
    shelf.replaceChildren(
      ...messages.map((message, i) => {
        const isLast = i === messages.length - 1;
        const retry = !running && isLast && message.role === "assistant" ? () => again(i) : null;
        const isLastQuestion = message.role === "user" && i >= messages.length - 2;
        const edit = !running && isLastQuestion ? () => editQuestion(i) : null;
        return messageView(message, pictureBefore(messages, i), { retry, edit });
      }),
    ),
  );
  byId("empty").hidden = messages.length > 0;
  showList();
}

function showList() {
  const act = { choose, rename, remove };
  byId("conversations").replaceChildren(...listView(conversations, current, act));
}

/** Store a conversation as it is now, unless it was deleted while its answer was heard. */
async function keep(conversation) {
  if (removed.has(conversation)) return;
  conversation.changed = Date.now();
  conversation.title ||= titleOf(conversation.messages);
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  try {
    await store.put(conversation);
  } catch {
    notice("The browser has no room for this conversation; it is gone when the page is closed.");
  }
}

async function askAbout(text, pictures) {
  current.messages.push({ role: "user", text, pictures });
  await answerNow();
}

async function answerNow() {
  const conversation = current;
  const { messages } = conversation;
  const message = { role: "assistant", text: "" };
  const before = [...messages];
  messages.push(message);
  await keep(conversation);
  running = new AbortController();
  notice("");
  show();
  showSend();
  toEnd();
  let isDue = false;
  const trouble = await hear(message, before, settings, server?.limits, running.signal, () => {
    if (isDue || conversation !== current) return;
    isDue = true; // once a frame, or a fast model would keep the browser from showing anything
    requestAnimationFrame(() => {
      isDue = false;
      grow(message, pictureBefore(messages, messages.length - 1));
    });
  });
  running = null;
  await keep(conversation); // which may not be the one on the page any more
  show();
  showSend();
  if (conversation === current) {
    if (follows) toEnd();
    const said = byId("messages").lastElementChild?.querySelector(".body")?.textContent ?? "";
    say(trouble ? trouble.message : `Answer: ${said}`);
  }
  if (trouble?.status === 401) askKey();
  if (trouble?.status === 0) watch();
}

function grow(message, picture) {
  const article = byId("messages").lastElementChild;
  if (!running || !article) return;
  article.querySelector(".body").replaceWith(answerBody(message, picture));
  if (follows) toEnd();
}

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = document.scrollingElement;
  return scrollHeight - scrollTop - clientHeight < 120;
}

function toEnd() {
  follows = true;
  document.scrollingElement.scrollTop = document.scrollingElement.scrollHeight;
}

function again(index) {
  current.messages.splice(index);
  answerNow();
}

function editQuestion(index) {
  const [asked] = current.messages.splice(index);
  question.value = asked.text;
  attached = [...(asked.pictures ?? [])];
  fit();
  showAttached();
  keep(current);
  show();
  question.focus();
}

// --- Conversations --------------------------------------------------------------------------------

function choose(conversation) {
  running?.abort();
  current = conversation;
  byId("side").classList.remove("open");
  byId("menu").setAttribute("aria-expanded", "false");
  show();
  question.focus();
}

function rename(conversation) {
  const dialog = byId("rename");
  byId("title").value = conversation.title;
  dialog.addEventListener("close", async () => {
    conversation.title = byId("title").value.trim() || titleOf(conversation.messages);
    await store.put(conversation);
    showList();
  }, { once: true });
  dialog.showModal();
}

async function remove(conversation) {
  if (conversation === current) running?.abort();
  removed.add(conversation);
  await store.remove(conversation.id);
  for (const { pictures } of conversation.messages) letGo(pictures);
  conversations = conversations.filter((other) => other !== conversation);
  if (conversation === current) current = conversations[0] ?? newConversation();
  say("Deleted");
  show();
}

async function save() {
  let text = "";
  try {
    text = await exported(current);
  } catch {
    return notice("The conversation is too large to be saved as one file.");
  }
  const file = new Blob([text], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(file), download: `${current.title || "conversation"}.json` });
  link.click();
  URL.revokeObjectURL(link.href);
}

function load() {
  const input = el("input", { type: "file", accept: ".json,application/json" });
  input.addEventListener("change", async () => {
    try {
      current = await imported(await input.files[0].text());
      await keep(current);
      show();
    } catch (error) {
      notice(error.message);
    }
  });
  input.click();
}

// --- The question ---------------------------------------------------------------------------------

async function attach(files) {
  const told = [];
  notice("");
  for (const file of files) {
    try {
      attached.push(isVideoFile(file) ? takeInVideo(file, server?.limits) : await takeIn(file));
      told.push(attached.at(-1).name);
    } catch (error) {
      notice(error.message);
    }
  }
  showAttached();
  if (told.length) say(`Added ${told.join(", ")}`);
  question.focus();
}

function showAttached() {
  const drop = (index) => {
    letGo(attached.splice(index, 1));
    showAttached();
    question.focus();
  };
  byId("attached").replaceChildren(
    ...attached.map((picture, i) =>
      el("li", {}, isVideo(picture) ? still(picture) : shown(picture, picture.name), button("close", `Remove ${picture.name}`, () => drop(i))),
    ),
  );
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, 220)}px`;
}

function send() {
  const text = question.value.trim();
  if (running || (!text && !attached.length)) return;
  const pictures = attached;
  question.value = "";
  attached = [];
  fit();
  showAttached();
  askAbout(text || (pictures.every(isVideo) ? "Describe this video." : "Describe this image."), pictures);
}

function showSend() {
  const stop = () => running?.abort();
  const made = running ? button("stop", "Stop", stop, { kind: "strong" }) : button("send", "Send", send, { kind: "strong" });
  byId("send").replaceChildren(made);
}

// --- The server -----------------------------------------------------------------------------------

function notice(text, ...more) {
  byId("notice").hidden = !text;
  byId("notice").replaceChildren(text, ...more);
}

/** Look what runs there, again and again until a model is ready. */
async function watch() {
  if (isWatched) return;
  isWatched = true;
  try {
    await untilReady();
  } finally {
    isWatched = false;
  }
}

async function untilReady() {
  for (;;) {
    try {
      server = await look();
    } catch (error) {
      byId("state").className = "away";
      if (error.status === 401) return askKey();
      notice(`${error.message} `);
      await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
      continue;
    }
    const isReady = server.state === "ready";
    byId("model").textContent = isReady ? server.model : `${server.model}: ${server.state}`;
    byId("state").className = isReady ? "ready" : "loading";
    if (server.model === "demo") {
      byId("knows").replaceChildren(
        "This is demo, a tiny model that knows drawn shapes and short words. For photos and videos start the server with ",
        el("code", {}, "--model 2b"),
        ".",
      );
    }
    showSnippets();
    if (isReady || server.state === "unloaded") return notice("");
    if (server.state !== "loading") notice(`The model is ${server.state}.`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}

function askKey() {
  const dialog = byId("ask-key");
  if (dialog.open) return;
  byId("key").value = "";
  dialog.addEventListener("close", () => {
    key.set(byId("key").value.trim());
    watch();
  }, { once: true });
  dialog.showModal();
}

function showSnippets() {
  const base = new URL("v1", location.href).href;
  const curl = `curl ${base}/chat/completions -H 'Content-Type: application/json' -d '{
  "messages": [{"role": "user", "content": "Hello!"}]}'`;
  const python = `from openai import OpenAI

client = OpenAI(base_url="${base}", api_key="none")
reply = client.chat.completions.create(
    model=${JSON.stringify(server.model)}, messages=[{"role": "user", "content": "Hello!"}])
print(reply.choices[0].message.content)`;
  byId("snippets").replaceChildren(
    ...[["Base URL", base], ["curl", curl], ["Python", python]].map(([name, text]) =>
      el("div", { class: "code" },
        el("div", { class: "code-head" }, el("span", {}, name), copyButton(`Copy ${name}`, () => text)),
        el("pre", { tabindex: "0" }, el("code", {}, text))),
    ),
  );
}

// --- What is done to the page ---------------------------------------------------------------------

byId("header-tools").append(
  button("link", "Use it from your app", () => byId("use").showModal()),
  button("settings", "Settings", () => byId("settings").showModal()),
  button("theme", "Light or dark", () => say(settings.turnTheme())),
);
byId("menu").append(...button("menu", "", () => {}).childNodes);
byId("menu").addEventListener("click", () => {
  const isOpen = byId("side").classList.toggle("open");
  byId("menu").setAttribute("aria-expanded", String(isOpen));
});
byId("side-tools").append(
  button("add", "New chat", () => choose(newConversation()), { isWordy: true, kind: "quiet wordy" }),
  button("export", "Save this conversation as a file", save),
  button("import", "Load a conversation", load),
);
byId("kept").textContent = store.isKept ? "Kept in this browser." : "This browser keeps nothing; all is gone when the page is closed.";
byId("add").append(button("picture", "Add pictures or videos", () => byId("files").click()));
byId("files").addEventListener("change", async (event) => {
  await attach(event.target.files);
  event.target.value = "";
});
byId("beginnings").append(
  button("picture", "Try it with drawn shapes", async () => askAbout("What is shown in this image?", [await sample()]), { isWordy: true, kind: "quiet wordy" }),
  button("add", "Choose a picture or a video", () => byId("files").click(), { isWordy: true, kind: "quiet wordy" }),
);
byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (byId("side").classList.contains("open")) byId("menu").click();
  else running?.abort();
});
document.addEventListener("scroll", () => (follows = isAtEnd()));
// Pictures and videos have their size only once they are loaded.
for (const name of ["load", "loadedmetadata"]) {
  byId("messages").addEventListener(name, () => follows && toEnd(), true);
}
document.addEventListener("paste", (event) => {
  const files = filesOf(event.clipboardData);
  if (!files.length) return;
  event.preventDefault();
  attach(files);
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
}
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  attach(filesOf(event.dataTransfer));
});

show();
showSend();
question.focus();
watch();
