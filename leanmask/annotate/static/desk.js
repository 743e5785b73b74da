// What the three kinds of work share: units claimed ahead, pictures loaded ahead, answers on their way, undo.

import * as api from "./api.js";
import { newId } from "./outbox.js";

const AHEAD = 4; // units that are claimed and whose pictures are loaded before they are shown
const KEPT_PICTURES = 60;
const REMEMBERED = 200; // answers that can be undone

export class Desk {
  constructor({ annotator, tab, outbox, stopwatch, modes, categories, redraw, note, chooseClass }) {
    Object.assign(this, { annotator, tab, outbox, stopwatch, modes, redraw, note, chooseClass });
    this.names = new Map(categories.map((category) => [category.id, category.name]));
    this.units = [];
    this.history = [];
    this.pictures = new Map();
    this.finished = new Set();
    this.progress = null;
    this.claiming = null;
  }

  className(id) {
    return this.names.get(id) ?? String(id);
  }

  /** A picture, loaded once; the newest ones are kept. */
  picture(url) {
    let kept = this.pictures.get(url);
    if (!kept) {
      kept = { image: null };
      kept.promise = api.load(url).then((image) => (kept.image = image));
      kept.promise.catch(() => this.pictures.delete(url));
    }
    this.pictures.delete(url);
    this.pictures.set(url, kept);
    if (this.pictures.size > KEPT_PICTURES) this.pictures.delete(this.pictures.keys().next().value);
    return kept.promise;
  }

  /** The picture if it is loaded already. */
  ready(url) {
    return this.pictures.get(url)?.image ?? null;
  }

  key(unit) {
    return `${unit.kind}:${unit.target}`;
  }

  /** Claim more units when few are left; the pictures of all of them begin to load. */
  async stock() {
    if (this.claiming || this.units.length >= AHEAD) return this.claiming;
    this.claiming = this.claim().finally(() => {
      this.claiming = null;
    });
    return this.claiming;
  }

  async claim() {
    await this.outbox.flush(); // so that what is finished is not dealt again
    const told = await api.claim(this.annotator, this.tab, AHEAD + 1);
    this.progress = told.progress;
    const known = new Set([...this.units, this.current].filter(Boolean).map((unit) => this.key(unit)));
    const unsent = new Map(this.outbox.entries.filter((entry) => !entry.undo).map((entry) => [entry.id, entry]));
    for (const unit of told.units) {
      if (known.has(this.key(unit)) || this.finished.has(this.key(unit))) continue;
      const own = [...unsent.values()].filter((entry) => entry.kind === unit.kind && entry.target === unit.target);
      unit.given.push(...own.filter((entry) => !unit.given.some((item) => item.id === entry.id)));
      unit.loading = this.modes[unit.kind].prepare(unit);
      unit.loading.catch(() => {});
      this.units.push(unit);
    }
  }

  /** The next unit, its pictures loaded; null when there is none. Units whose pictures are broken are left out. */
  async next() {
    for (;;) {
      if (!this.units.length) {
        this.current = null;
        await this.stock();
      } else this.stock().catch(() => {});
      const unit = this.units.shift();
      if (!unit) return null;
      this.current = unit;
      try {
        await unit.loading;
        return unit;
      } catch {
        this.finished.add(this.key(unit));
        this.note(`${unit.name} cannot be shown and is left out.`);
      }
    }
  }

  /** Send an answer on its way; returns what is remembered of it. */
  answer({ unit, position, value, detail = null }) {
    const seconds = Math.round(this.stopwatch.lap() * 1000) / 1000;
    const item = { id: newId(), kind: unit.kind, target: unit.target, position, value, seconds, detail };
    this.outbox.add({ ...item, annotator: this.annotator, tab: this.tab });
    this.history = [...this.history, { unit, item }].slice(-REMEMBERED);
    this.stopwatch.show();
    return item;
  }

  /** Take the last answer back; returns its unit, null when there is none. */
  undo() {
    const last = this.history.pop();
    if (!last) return null;
    const { unit, item } = last;
    unit.given = unit.given.filter((other) => other.id !== item.id);
    this.finished.delete(this.key(unit));
    this.outbox.add({ undo: true, id: item.id, annotator: this.annotator, tab: this.tab });
    if (this.current && this.current !== unit) this.units.unshift(this.current);
    this.current = unit;
    this.stopwatch.show();
    return unit;
  }

  finish(unit) {
    this.finished.add(this.key(unit));
  }

  /** What was answered before the page was loaded can be undone too. */
  recall(unit) {
    const known = new Set(this.history.map(({ item }) => item.id));
    this.history.push(...unit.given.filter((item) => !known.has(item.id)).map((item) => ({ unit, item })));
  }
}

/** Sends entries of the outbox. Throws when they must be sent again. */
export function sender(onProgress) {
  return async (entries) => {
    const [{ annotator, tab, undo, id }] = entries;
    const told = undo
      ? await api.undo(annotator, tab, id)
      : await api.answer(annotator, tab, entries.map(({ annotator: _a, tab: _t, ...answer }) => answer));
    onProgress(told);
  };
}
