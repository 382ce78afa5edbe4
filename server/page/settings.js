// What a person sets, remembered in this browser; an empty field is the model's own.

import { byId, el } from "./dom.js";

const KEY = "mlx-qwenvl-settings";
const THEME = "mlx-qwenvl-theme";
const FIELDS = [
  { name: "system", label: "System message", type: "textarea" },
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: "any", told: "0 gives the same answer each time" },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: "any", told: "keeps the likeliest words up to this share" },
  { name: "top_k", label: "Top k", min: 0, step: 1, told: "keeps this many words; 0 keeps all" },
  { name: "max_tokens", label: "Longest answer, in tokens", min: 1, step: 1 },
  { name: "seed", label: "Seed", min: 0, step: 1, told: "makes a drawn answer repeatable" },
];

function read() {
  try {
    const told = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    return told && typeof told === "object" ? told : {};
  } catch {
    return {};
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // A private window forgets; the setting holds until it is closed.
  }
}

/** The settings and their dialog. */
export class Settings {
  constructor() {
    this.values = read();
    byId("fields").append(...FIELDS.map((field) => this.#field(field)));
    byId("reset").addEventListener("click", () => {
      this.values = {};
      keep(KEY, "{}");
      for (const input of byId("fields").querySelectorAll("input, textarea")) input.value = "";
    });
    this.theme(localStorage.getItem(THEME));
  }

  #field({ name, label, type, told, ...limits }) {
    const id = `set-${name}`;
    const input = type === "textarea" ? el("textarea", { id, rows: 2 }) : el("input", { id, type: "number", inputmode: "decimal", ...limits });
    input.value = this.values[name] ?? "";
    input.addEventListener("input", () => {
      const text = input.value.trim();
      if (!input.checkValidity()) return;
      if (text) this.values[name] = type === "textarea" ? input.value : Number(text);
      else delete this.values[name];
      keep(KEY, JSON.stringify(this.values));
    });
    const hint = told ? el("span", { class: "small" }, told) : null;
    return el("p", { class: "field" }, el("label", { for: id }, label), input, hint);
  }

  /** What is sent of them; a field that is not set is left out. */
  get sampling() {
    const { system, ...numbers } = this.values;
    return Object.fromEntries(Object.entries(numbers).filter(([, value]) => Number.isFinite(value)));
  }

  get system() {
    return typeof this.values.system === "string" ? this.values.system.trim() : "";
  }

  /** Light, dark, or null for what the system has. */
  theme(name) {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
  }

  /** To the other theme than the one that is seen. */
  turnTheme() {
    const seen = document.documentElement.dataset.theme;
    const isDark = seen ? seen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    const next = isDark ? "light" : "dark";
    this.theme(next);
    keep(THEME, next);
    return next;
  }
}
