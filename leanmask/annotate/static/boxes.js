// Drawing boxes by four extreme clicks: the leftmost, topmost, rightmost and bottommost point of an object.

import { pictureUrl } from "./api.js";
import { around, boxOf, isWhole, onto, toCanvas, toImage } from "./geometry.js";
import { drawBox, drawCross, drawDot, drawPart } from "./views.js";

const LONGEST = 2000;
const ZOOM_REACH_PX = 28; // of the screen, at four times the size
const LEAST_SIDE_PX = 0.5;
const SETTLED_MS = 120;

const hundredths = (number) => Math.round(number * 100) / 100;

export class Boxes {
  static actions = [
    { name: "click", label: "Set corner", keys: [" ", "Enter"], className: "first" },
    { name: "done", label: "All boxed", keys: ["d"], className: "second" },
    { name: "partly", label: "More left", keys: ["p"] },
    { name: "undo", label: "Undo", keys: ["Backspace", "z"] },
    { name: "skip", label: "Skip image", keys: ["s"] },
  ];

  constructor(desk) {
    this.desk = desk;
  }

  async prepare(unit) {
    unit.image = await this.desk.picture(pictureUrl(unit.picture, unit.view, LONGEST));
  }

  start(unit) {
    this.unit = unit;
    this.clicks = [];
    this.cursor = [unit.width / 2, unit.height / 2];
  }

  boxes() {
    return this.unit.given.filter((item) => item.value === "box");
  }

  title() {
    const count = this.boxes().length;
    const wanted = ["left", "top", "right", "bottom"][this.clicks.length] ?? "";
    return { category: `${count} ${count === 1 ? "box" : "boxes"}`, step: `click the ${wanted} end of an object` };
  }

  draw({ object, zoom }) {
    const { unit } = this;
    const { context, frame } = drawPart(object, unit.image, unit.view, unit.view);
    this.frame = frame;
    for (const item of this.boxes()) drawBox(context, frame, item.detail.box, this.desk.className(item.detail.category_id));
    if (this.clicks.length > 1) drawBox(context, frame, boxOf(this.clicks), "", true);
    for (const point of this.clicks) drawDot(context, frame, point);
    drawCross(context, frame, this.cursor, object);
    this.drawZoom(zoom);
    object.setAttribute("aria-label", `image ${unit.name}, ${this.boxes().length} boxes; arrow keys move the cross`);
  }

  drawZoom(zoom) {
    const { unit } = this;
    const view = around(...this.cursor, Math.max(ZOOM_REACH_PX / this.frame.scale, 6), unit.width, unit.height);
    const url = pictureUrl(unit.picture, view, 600);
    const near = isWhole(unit.view, unit.image.naturalWidth) ? null : this.desk.ready(url);
    if (!near && !isWhole(unit.view, unit.image.naturalWidth)) this.settle(url);
    const { context, frame } = drawPart(zoom, near ?? unit.image, near ? view : unit.view, view);
    for (const point of this.clicks) drawDot(context, frame, point);
    drawCross(context, frame, this.cursor, zoom);
    zoom.setAttribute("aria-label", `enlarged at x ${Math.round(this.cursor[0])}, y ${Math.round(this.cursor[1])}`);
  }

  /** Load the enlargement of a large image in full detail once the cross rests. */
  settle(url) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.desk.picture(url).then(() => this.desk.redraw()).catch(() => {}), SETTLED_MS);
  }

  /** The cross follows a mouse or finger at canvas position [x, y]. */
  point(x, y) {
    this.cursor = onto(...toImage(this.frame, x, y), this.unit.width, this.unit.height);
  }

  /** Arrow keys move the cross by a pixel of the screen, with Shift by 20. */
  move(dx, dy, far) {
    const step = (far ? 20 : 1) / this.frame.scale;
    const [x, y] = this.cursor;
    this.cursor = onto(x + dx * step, y + dy * step, this.unit.width, this.unit.height);
  }

  where() {
    return toCanvas(this.frame, ...this.cursor);
  }

  async act(name) {
    if (name === "click") return this.click();
    if (name === "skip") return this.finish("skip", null);
    if (this.clicks.length) {
      this.desk.note("An object is half boxed: set its other ends, or undo.");
      return false;
    }
    return this.finish("done", { exhaustive: name === "done" });
  }

  finish(value, detail) {
    this.unit.given.push(this.desk.answer({ unit: this.unit, position: -1, value, detail }));
    return true;
  }

  async click() {
    this.clicks.push(this.cursor.map(hundredths));
    if (this.clicks.length < 4) return false;
    const box = boxOf(this.clicks).map(hundredths);
    const extremes = this.clicks;
    if (box[2] < LEAST_SIDE_PX || box[3] < LEAST_SIDE_PX) {
      this.clicks = [];
      this.desk.note("These four points make no box; start again.");
      return false;
    }
    this.desk.redraw();
    const category = await this.desk.chooseClass("Class of the box", false);
    this.clicks = [];
    if (category === null) return false;
    const position = Math.max(-1, ...this.boxes().map((item) => item.position)) + 1;
    const detail = { box, extremes, category_id: category };
    this.unit.given.push(this.desk.answer({ unit: this.unit, position, value: "box", detail }));
    return false;
  }

  /** Undo takes back a click before it takes back a box. */
  takeBackClick() {
    return this.clicks.pop() !== undefined;
  }

  takeBack() {
    this.clicks = [];
  }
}
