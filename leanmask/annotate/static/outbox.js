// Answers on their way to the server. They are kept in the browser's storage until the server has them, so that a slow
// network, a restarted server or a closed tab loses none; each has an id, so that one sent twice is saved once. What
// the server refuses is put aside, so that the rest can go on, and offered again when a page is opened the next time.

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 8000;
const TOGETHER = 50;
const FINAL = [403, 404, 422]; // trying again does not help; a token that is wrong or a server in trouble may come right

/** A new id for an answer or a tab. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The first entries that can go in one request: up to `most` answers of one annotator, or a single undo. */
export function batchOf(entries, most = TOGETHER) {
  if (!entries.length || entries[0].undo) return entries.slice(0, 1);
  const { annotator, tab } = entries[0];
  const end = entries.findIndex((entry) => entry.undo || entry.annotator !== annotator || entry.tab !== tab);
  return entries.slice(0, Math.min(end < 0 ? entries.length : end, most));
}

export class Outbox {
  /**
   * storage: like localStorage. prefix: of this store's keys. send: (entries) => results, each with id, status and reason;
   * throws when it cannot, with the HTTP status where there is one. refused: told the reason of a refusal.
   */
  constructor({
    storage, prefix, tab, send, changed = () => {}, refused = () => {}, wait = (call, ms) => setTimeout(call, ms),
  }) {
    Object.assign(this, { storage, prefix, tab, send, changed, refused, wait });
    this.key = `${prefix}:${tab}`;
    this.refusedKey = `${prefix}-refused`; // shared by all tabs
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

  keep(key, entries) {
    try {
      if (entries.length) this.storage.setItem(key, JSON.stringify(entries));
      else this.storage.removeItem(key);
    } catch {
      // A full or forbidden storage: what is on its way is still in memory, what was refused has been told.
    }
  }

  write() {
    this.keep(this.key, this.entries);
    this.changed(this.entries.length, this.delay > 0, this.read(this.refusedKey).length);
  }

  /**
   * Take over what other tabs left unsent when they were closed, and what was refused: the server may have been started
   * anew with other settings. A tab that lives sends the same: no harm is done.
   */
  adopt() {
    const keys = Array.from({ length: this.storage.length }, (_, place) => this.storage.key(place));
    const others = keys.filter((name) => name.startsWith(`${this.prefix}:`) && name !== this.key);
    for (const key of [...others, this.refusedKey]) {
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
    let most = TOGETHER;
    try {
      while (this.entries.length) {
        const batch = batchOf(this.entries, most);
        const results = await this.offer(batch);
        if (!results) {
          most = 1; // one by one, so that only what is to blame is refused
          continue;
        }
        const gone = new Set(batch); // meanwhile others may have been put in front
        this.entries = this.entries.filter((entry) => !gone.has(entry));
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

  /** Send a batch and put aside what is refused. Null: several together were refused, it may be for the sake of one. */
  async offer(batch) {
    let results;
    try {
      results = (await this.send(batch)) ?? [];
    } catch (error) {
      if (!FINAL.includes(error.status)) throw error;
      if (batch.length > 1) return null;
      results = [{ id: batch[0].id, status: "refused", reason: error.message }];
    }
    const reasons = new Map(results.filter(({ status }) => status === "refused").map(({ id, reason }) => [id, reason]));
    const aside = batch.filter((entry) => reasons.has(entry.id));
    if (aside.length) {
      this.keep(this.refusedKey, [...this.read(this.refusedKey), ...aside]);
      this.refused(reasons.get(aside[0].id));
    } else if (batch[0].undo) {
      // A refused answer that was taken back is not to be offered again.
      this.keep(this.refusedKey, this.read(this.refusedKey).filter((entry) => entry.id !== batch[0].id));
    }
    return results;
  }
}
