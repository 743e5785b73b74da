// Accepting and rejecting pseudo-labels, the doubtful first.

import { maskUrl, pictureUrl } from "./api.js";
import { drawBox, drawPart } from "./views.js";

const LONGEST = 1200;

export class Review {
  static actions = [
    { name: "accept", label: "Accept", keys: ["a", "f", "1"], className: "first" },
    { name: "reject", label: "Reject", keys: ["r", "j", "2"], className: "second" },
    { name: "wrong_class", label: "Wrong class", keys: ["c", "3"] },
    { name: "cuts_off", label: "Mask cuts off", keys: ["x", "4"] },
    { name: "unsure", label: "Unsure", keys: [" ", "5"] },
    { name: "mask", label: "Mask on/off", keys: ["m"], still: true },
    { name: "undo", label: "Undo", keys: ["Backspace", "z"] },
  ];

  constructor(desk) {
    this.desk = desk;
    this.overlay = true;
  }

  async prepare(unit) {
    const pictures = [this.desk.picture(pictureUrl(unit.picture, unit.view, LONGEST))];
    if (unit.mask) pictures.push(this.desk.picture(maskUrl(unit.target, unit.view, LONGEST)));
    [unit.image, unit.maskImage] = await Promise.all(pictures);
  }

  start(unit) {
    this.unit = unit;
  }

  title() {
    return { category: this.unit.category, step: `certainty ${Math.round(100 * this.unit.certainty)} %` };
  }

  draw({ object, zoom }) {
    const { unit } = this;
    const { context, frame } = drawPart(object, unit.image, unit.view, unit.view);
    if (this.overlay && unit.maskImage) {
      context.imageSmoothingEnabled = true;
      context.drawImage(unit.maskImage, frame.x, frame.y, unit.view[2] * frame.scale, unit.view[3] * frame.scale);
    } else if (this.overlay) {
      drawBox(context, frame, unit.box, "", true);
    }
    drawPart(zoom, unit.image, unit.view, unit.view);
    object.setAttribute("aria-label", `${unit.category} with its pseudo-mask, image ${unit.name}`);
    zoom.setAttribute("aria-label", `the same part of image ${unit.name} without the mask`);
  }

  async act(name) {
    if (name === "mask") {
      this.overlay = !this.overlay;
      return false;
    }
    let detail = null;
    if (name === "wrong_class") {
      const category = await this.desk.chooseClass("Right class (Escape: it is none of these)", true);
      if (category !== null) detail = { category_id: category };
    }
    this.unit.given.push(this.desk.answer({ unit: this.unit, position: 0, value: name, detail }));
    return true;
  }

  takeBack() {}
}
