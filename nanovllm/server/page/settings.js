// The settings dialog and the theme switch: fields in, the values that a request carries out.

import { listModels } from "./api.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const find = (id) => document.getElementById(id);

export class Settings {
  constructor(store, showError) {
    this.store = store;
    this.showError = showError;
    this.fill();
    const dialog = find("settings");
    find("show-settings").addEventListener("click", () => {
      dialog.showModal();
      find("show-settings").setAttribute("aria-expanded", "true");
    });
    dialog.addEventListener("close", () => {
      find("show-settings").setAttribute("aria-expanded", "false");
      this.take();
    });
    find("reset-settings").addEventListener("click", () => {
      this.store.saveSettings({ theme: this.store.settings.theme });
      this.fill();
    });
    find("theme").addEventListener("click", () => this.switchTheme());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.showTheme());
    this.showTheme();
    this.loadModels();
  }

  // What a request carries besides its messages; an empty field is left out.
  get options() {
    const told = {};
    if (find("model").value) told.model = find("model").value;
    for (const name of NUMBERS) if (find(name).value !== "") told[name] = Number(find(name).value);
    if ("max_tokens" in told) {
      told.max_completion_tokens = told.max_tokens;
      delete told.max_tokens;
    }
    return told;
  }

  get system() {
    return find("system").value.trim();
  }

  get key() { // of the field, since a dialog tells of its end only after a while
    return find("key").value;
  }

  async loadModels() {
    try {
      const names = await listModels(this.store.key);
      const chosen = this.store.settings.model;
      find("model").replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
      find("welcome-model").textContent = `You are talking to ${find("model").value}.`;
    } catch (error) {
      this.showError(error.message);
    }
  }

  fill() {
    for (const name of [...NUMBERS, "system"]) find(name).value = this.store.settings[name] ?? "";
    find("key").value = this.store.key;
    find("keep-key").checked = this.store.keepsKey;
  }

  take() {
    const values = { theme: this.store.settings.theme, model: find("model").value };
    for (const name of [...NUMBERS, "system"]) if (find(name).value !== "") values[name] = find(name).value;
    this.store.saveSettings(values);
    const isNew = find("key").value !== this.store.key;
    this.store.saveKey(find("key").value, find("keep-key").checked);
    if (isNew || !find("model").options.length) this.loadModels();
    else find("welcome-model").textContent = `You are talking to ${find("model").value}.`;
  }

  get isDark() {
    return (this.store.settings.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  }

  switchTheme() {
    this.store.saveSettings({ ...this.store.settings, theme: this.isDark ? "light" : "dark" });
    this.showTheme();
  }

  showTheme() {
    document.documentElement.dataset.theme = this.isDark ? "dark" : "light";
    find("theme").textContent = this.isDark ? "☀" : "☾";
    find("theme").setAttribute("aria-label", this.isDark ? "Switch to the light theme" : "Switch to the dark theme");
  }
}
