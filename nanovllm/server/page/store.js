// What the browser keeps: conversations and settings in localStorage, the API key in sessionStorage and only if asked to.
// A conversation is {id, title, updated, messages: [{role, content, reasoning?, meta?}]}.

const CONVERSATIONS = "nanovllm.conversations";
const SETTINGS = "nanovllm.settings";
const KEY = "nanovllm.key";

export class Store {
  constructor() {
    this.conversations = read(localStorage, CONVERSATIONS, []);
    this.settings = read(localStorage, SETTINGS, {});
    this.key = sessionStorage.getItem(KEY) || "";
    this.keepsKey = this.key !== "";
  }

  create() {
    const made = { id: newId(), title: "New conversation", updated: Date.now(), messages: [] };
    this.conversations.unshift(made);
    return made;
  }

  remove(conversation) {
    this.conversations = this.conversations.filter((each) => each !== conversation);
    this.save();
  }

  // What another tab has saved meanwhile; `current` stays the one that is open here.
  reload(current) {
    const saved = read(localStorage, CONVERSATIONS, []);
    this.conversations = saved.map((each) => (each.id === current.id ? current : each));
    if (!this.conversations.includes(current)) this.conversations.unshift(current);
  }

  // False where the browser has no room left; the conversation is then only on the page.
  save() {
    try {
      localStorage.setItem(CONVERSATIONS, JSON.stringify(this.conversations.filter((each) => each.messages.length)));
      return true;
    } catch {
      return false;
    }
  }

  saveSettings(settings) {
    this.settings = settings;
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  }

  saveKey(key, keeps) {
    this.key = key;
    this.keepsKey = keeps;
    if (keeps && key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  }
}

function newId() {  // crypto.randomUUID is missing where the page does not come from https or this machine
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function read(storage, name, fallback) {
  try {
    const value = JSON.parse(storage.getItem(name));
    return value !== null && typeof value === "object" && Array.isArray(value) === Array.isArray(fallback) ? value : fallback;
  } catch {
    return fallback;
  }
}
