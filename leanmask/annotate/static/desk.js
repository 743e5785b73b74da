// What the three kinds of work share: units claimed ahead, pictures loaded ahead, answers on their way, undo.

import * as api from "./api.js";
import { newId } from "./outbox.js";

const AHEAD = 4; // units that are claimed and whose pictures are loaded before they are shown
const KEPT_PICTURES = 60;
const REMEMBERED = 200; // answers that can be undone
const NO_PICTURE = 404; // what is wrong is the picture, so that trying again is of no use

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
    const undone = new Set(this.outbox.entries.filter((entry) => entry.undo).map((entry) => entry.id));
    const stands = (item) => !undone.has(item.id);
    const unsent = this.outbox.entries.filter((entry) => !entry.undo && stands(entry));
    for (const unit of told.units) {
      if (known.has(this.key(unit)) || this.finished.has(this.key(unit))) continue;
      const own = unsent.filter((entry) => entry.kind === unit.kind && entry.target === unit.target);
      unit.given = unit.given.filter(stands);
      unit.given.push(...own.filter((entry) => !unit.given.some((item) => item.id === entry.id)));
      if (this.answered(unit)) continue; // the server does not know yet
      this.units.push(unit);
      this.prepare(unit);
    }
  }

  answered(unit) {
    const pieces = unit.given.filter((item) => item.position >= 0).length;
    return pieces < unit.given.length || (unit.count > 0 && pieces >= unit.count);
  }

  /** Load a unit's pictures; what the network broke off is begun anew by the next call. */
  prepare(unit) {
    unit.loading ??= this.modes[unit.kind].prepare(unit).then(
      () => { unit.ready = true; },
      (error) => {
        if (error.status !== NO_PICTURE) unit.loading = null;
        throw error;
      },
    );
    unit.loading.catch(() => {}); // whoever waits for it is told
    return unit.loading;
  }

  /**
   * The next unit, its pictures loaded; null when there is none. It stays in line until `take`. Units whose pictures
   * are damaged are left out; rejects when the server is away, and can be called again then.
   */
  async next() {
    for (;;) {
      if (this.units.length) this.stock().catch(() => {});
      else await this.stock();
      const [unit] = this.units;
      if (!unit) return null;
      this.units.forEach((other) => this.prepare(other));
      try {
        await this.prepare(unit);
        return unit;
      } catch (error) {
        this.drop(unit);
        if (error.status !== NO_PICTURE) {
          this.units.push(unit); // the others first, should it be this one alone
          throw error;
        }
        this.finished.add(this.key(unit));
        this.note(`${unit.name} cannot be shown and is left out.`);
      }
    }
  }

  /** Work on a unit that `next` gave, or that is ready at the head of the line. */
  take(unit) {
    this.drop(unit);
    this.current = unit;
    this.stock().catch(() => {});
  }

  drop(unit) {
    this.units = this.units.filter((other) => other !== unit);
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
    this.drop(unit);
    this.current = unit;
    this.stopwatch.show();
    return unit;
  }

  finish(unit) {
    this.finished.add(this.key(unit));
    this.current = null;
  }

  /** What was answered before the page was loaded can be undone too. */
  recall(unit) {
    const known = new Set(this.history.map(({ item }) => item.id));
    this.history.push(...unit.given.filter((item) => !known.has(item.id)).map((item) => ({ unit, item })));
  }
}

/** Sends entries of the outbox; returns the server's results. Throws when all of them must be sent again. */
export function sender(onProgress) {
  return async (entries) => {
    const [{ annotator, tab, undo, id }] = entries;
    const told = undo
      ? await api.undo(annotator, tab, id)
      : await api.answer(annotator, tab, entries.map(({ annotator: _a, tab: _t, ...answer }) => answer));
    onProgress(told);
    return told.results ?? [];
  };
}
