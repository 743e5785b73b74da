// Classifying points: is the marked pixel on the object, or on the background?

import { pictureUrl } from "./api.js";
import { around, isWhole, reachOf } from "./geometry.js";
import { drawBox, drawMarker, drawPart, drawPixel } from "./views.js";

const LONGEST = 1400;
const ZOOM_LONGEST = 700;
const AHEAD = 3; // points whose enlargement is loaded before they are shown

export class Points {
  static actions = [
    { name: "object", label: "Object", keys: ["f", "1", "ArrowLeft"], className: "first" },
    { name: "background", label: "Background", keys: ["j", "2", "ArrowRight"], className: "second" },
    { name: "unsure", label: "Unsure", keys: [" ", "3", "ArrowDown"] },
    { name: "undo", label: "Undo", keys: ["Backspace", "z", "ArrowUp"] },
    { name: "skip", label: "Skip object", keys: ["s"] },
  ];

  constructor(desk) {
    this.desk = desk;
  }

  /** Load what the unit needs, before it is its turn. */
  async prepare(unit) {
    unit.image = await this.desk.picture(pictureUrl(unit.picture, unit.view, LONGEST));
    this.ahead(unit, 0);
  }

  ahead(unit, first) {
    if (isWhole(unit.view, unit.image.naturalWidth)) return;
    for (let place = first; place < Math.min(first + AHEAD, unit.points.length); place += 1) {
      this.desk.picture(this.zoomUrl(unit, place)).catch(() => {});
    }
  }

  zoomView(unit, place) {
    const [x, y] = unit.points[place];
    return around(x + 0.5, y + 0.5, reachOf(unit.box), unit.width, unit.height);
  }

  zoomUrl(unit, place) {
    return pictureUrl(unit.picture, this.zoomView(unit, place), ZOOM_LONGEST);
  }

  start(unit) {
    this.unit = unit;
    this.place = this.nextPlace();
  }

  nextPlace() {
    const given = new Set(this.unit.given.map((item) => item.position));
    const open = this.unit.points.findIndex((_, place) => !given.has(place));
    return open < 0 ? this.unit.points.length : open;
  }

  title() {
    return { category: this.unit.category, step: `point ${this.place + 1} of ${this.unit.points.length}` };
  }

  draw({ object, zoom }) {
    const { unit, place } = this;
    const pixel = unit.points[place];
    const wide = drawPart(object, unit.image, unit.view, unit.view);
    drawBox(wide.context, wide.frame, unit.box, "", true);
    drawMarker(wide.context, wide.frame, pixel, 9);
    const view = this.zoomView(unit, place);
    const near = isWhole(unit.view, unit.image.naturalWidth) ? null : this.desk.ready(this.zoomUrl(unit, place));
    if (!near && !isWhole(unit.view, unit.image.naturalWidth)) {
      this.desk.picture(this.zoomUrl(unit, place)).then(() => this.desk.redraw()).catch(() => {});
    }
    const drawn = drawPart(zoom, near ?? unit.image, near ? view : unit.view, this.clipped(view, near));
    drawPixel(drawn.context, drawn.frame, pixel);
    drawMarker(drawn.context, drawn.frame, pixel, Math.max(14, drawn.frame.scale * 0.9));
    object.setAttribute("aria-label", `${unit.category}, its box and surroundings, image ${unit.name}`);
    zoom.setAttribute("aria-label", `enlarged around point ${place + 1}, x ${pixel[0]}, y ${pixel[1]}`);
  }

  /** The enlargement cannot show more of the image than there is a picture of. */
  clipped(view, near) {
    if (near) return view;
    const [x, y, width, height] = this.unit.view;
    const left = Math.max(view[0], x);
    const top = Math.max(view[1], y);
    return [left, top, Math.min(view[0] + view[2], x + width) - left, Math.min(view[1] + view[3], y + height) - top];
  }

  /** What a key or button means: an answer, and whether the unit is finished by it. */
  act(name) {
    const { unit, place } = this;
    const whole = name === "skip";
    if (!whole && place >= unit.points.length) return true; // there is no such point, so nobody has seen it
    const item = this.desk.answer({ unit, position: whole ? -1 : place, value: name });
    unit.given.push(item);
    this.place = this.nextPlace();
    this.ahead(unit, this.place);
    return whole || this.place >= unit.points.length;
  }

  takeBack() {
    this.place = this.nextPlace();
  }
}
