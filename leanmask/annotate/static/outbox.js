// Answers on their way to the server. They are kept in the browser's storage until the server has them, so that a slow
// network, a restarted server or a closed tab loses none; each has an id, so that one sent twice is saved once.

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 8000;
const TOGETHER = 50;

/** A new id for an answer or a tab. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The first entries that can go in one request: answers of one annotator, or a single undo. */
export function batchOf(entries) {
  if (!entries.length || entries[0].undo) return entries.slice(0, 1);
  const { annotator, tab } = entries[0];
  const end = entries.findIndex((entry) => entry.undo || entry.annotator !== annotator || entry.tab !== tab);
  return entries.slice(0, Math.min(end < 0 ? entries.length : end, TOGETHER));
}

export class Outbox {
  /** storage: like localStorage. prefix: of this store's keys. send: (entries) => results, throws when it cannot. */
  constructor({ storage, prefix, tab, send, changed = () => {}, wait = (call, ms) => setTimeout(call, ms) }) {
    Object.assign(this, { storage, prefix, tab, send, changed, wait });
    this.key = `${prefix}:${tab}`;
    this.entries = this.read(this.key);
    this.delay = 0;
    this.sending = null; // the promise of the sending that is going on
  }

  read(key) {
    try {
      const found = JSON.parse(this.storage.getItem(key) ?? "[]");
      return Array.isArray(found) ? found : [];
    } catch {
      return [];
    }
  }

  write() {
    try {
      if (this.entries.length) this.storage.setItem(this.key, JSON.stringify(this.entries));
      else this.storage.removeItem(this.key);
    } catch {
      // A full or forbidden storage: the entries are still in memory and on their way.
    }
    this.changed(this.entries.length, this.delay > 0);
  }

  /** Take over what other tabs left unsent when they were closed. A tab that lives sends the same: no harm is done. */
  adopt() {
    const keys = Array.from({ length: this.storage.length }, (_, place) => this.storage.key(place));
    for (const key of keys.filter((name) => name.startsWith(`${this.prefix}:`) && name !== this.key)) {
      this.entries = [...this.read(key), ...this.entries];
      this.storage.removeItem(key);
    }
    if (this.entries.length) this.write();
    this.flush();
  }

  add(entry) {
    this.entries.push(entry);
    this.write();
    this.flush();
  }

  /** Send what there is, in order. Resolves when all of it is sent, or when a request has failed: it is tried again. */
  async flush() {
    if (!this.entries.length) return;
    this.sending ??= this.sendAll();
    await this.sending;
  }

  async sendAll() {
    try {
      while (this.entries.length) {
        const batch = batchOf(this.entries);
        await this.send(batch);
        this.entries = this.entries.slice(batch.length);
        this.delay = 0;
        this.write();
      }
    } catch {
      this.delay = Math.min(Math.max(this.delay * 2, FIRST_DELAY_MS), LONGEST_DELAY_MS);
      this.write();
      this.wait(() => this.flush(), this.delay);
    } finally {
      this.sending = null;
    }
  }
}
