// Conversations, kept in this browser and nowhere else.

const NAME = "mlx-qwenvl";
const SHELF = "conversations";

/** Conversations by id; in memory alone where the browser keeps nothing, as in private windows. */
export class Store {
  static async open() {
    const store = new Store();
    store.memory = new Map();
    try {
      store.base = await opened();
      store.isKept = true;
    } catch {
      store.base = null;
      store.isKept = false;
    }
    return store;
  }

  /** All of them, the newest first. */
  async list() {
    const all = this.base ? await this.#do("readonly", (shelf) => shelf.getAll()) : [...this.memory.values()];
    return all.sort((a, b) => b.changed - a.changed);
  }

  /** Keep one as it is now. Throws where there is no room. */
  async put(conversation) {
    this.memory.set(conversation.id, conversation);
    if (this.base) await this.#do("readwrite", (shelf) => shelf.put(conversation));
  }

  async remove(id) {
    this.memory.delete(id);
    if (this.base) await this.#do("readwrite", (shelf) => shelf.delete(id));
  }

  #do(mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.base.transaction(SHELF, mode);
      const request = work(transaction.objectStore(SHELF));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = transaction.onerror = () => reject(transaction.error ?? request.error);
    });
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(SHELF, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** A conversation that nothing was said in yet. */
export function newConversation() {
  return { id: newId(), title: "", changed: Date.now(), messages: [] };
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A conversation as a file's text, with its pictures and videos in it. */
export async function exported(conversation) {
  const messages = [];
  for (const { pictures = [], ...message } of conversation.messages) {
    const urls = await Promise.all(pictures.map(async ({ name, blob }) => ({ name, url: await dataUrl(blob) })));
    messages.push({ ...message, pictures: urls });
  }
  return JSON.stringify({ form: NAME, version: 1, title: conversation.title, messages }, null, 1);
}

/** The conversation of such a file. Throws an Error that says what is wrong with it. */
export async function imported(text) {
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    told = null;
  }
  if (told?.form !== NAME || told.version !== 1 || !Array.isArray(told.messages)) {
    throw new Error("This file is no conversation that was saved here.");
  }
  const conversation = { ...newConversation(), title: String(told.title ?? "") };
  for (const message of told.messages) {
    if (!["user", "assistant"].includes(message?.role)) throw new Error("The file has a message of nobody.");
    const pictures = (Array.isArray(message.pictures) ? message.pictures : []).map(({ name, url }) => ({
      name: String(name),
      blob: blobOf(String(url)),
    }));
    conversation.messages.push({ role: message.role, text: String(message.text ?? ""), pictures });
  }
  return conversation;
}

/** A picture or a video as a URL that holds all of it. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function blobOf(url) {
  const match = /^data:((?:image|video)\/[\w.+-]+);base64,([\w+/=]*)$/.exec(url);
  if (!match) throw new Error("The file has a picture or a video that is none.");
  const bytes = Uint8Array.from(atob(match[2]), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: match[1] });
}
