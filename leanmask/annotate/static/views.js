// What is drawn on a canvas: a part of an image, markers that stay visible on any colour, boxes, masks.

import { fit, toCanvas } from "./geometry.js";

const RIM = "#000";
const CORE = "#fff";

/** Make a canvas as sharp as the screen; returns its drawing context, cleared, in CSS pixels. */
export function prepare(canvas) {
  const ratio = globalThis.devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  const [w, h] = [Math.max(Math.round(width * ratio), 1), Math.max(Math.round(height * ratio), 1)];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** Draw the part `view` of an image out of `picture`, which shows the part `shown`; returns the frame of the view. */
export function drawPart(canvas, picture, shown, view) {
  const { context, width, height } = prepare(canvas);
  const frame = fit(view, width, height);
  const density = picture.naturalWidth / shown[2];
  context.imageSmoothingEnabled = frame.scale < 3 * density;
  context.imageSmoothingQuality = "high";
  context.drawImage(
    picture,
    (view[0] - shown[0]) * density,
    (view[1] - shown[1]) * (picture.naturalHeight / shown[3]),
    view[2] * density,
    view[3] * (picture.naturalHeight / shown[3]),
    frame.x,
    frame.y,
    view[2] * frame.scale,
    view[3] * frame.scale,
  );
  return { context, frame };
}

/** Draw with a dark rim and a light core, so that it shows on dark, light and coloured ground. */
function doubled(context, thickness, path) {
  for (const [style, width] of [[RIM, thickness + 2.5], [CORE, thickness]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    path();
    context.stroke();
  }
}

/** A ring with four ticks around the centre of pixel [x, y]; what lies under it stays visible. */
export function drawMarker(context, frame, pixel, radius) {
  const [x, y] = toCanvas(frame, pixel[0] + 0.5, pixel[1] + 0.5);
  doubled(context, 2, () => {
    context.arc(x, y, radius, 0, 2 * Math.PI);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      context.moveTo(x + dx * radius, y + dy * radius);
      context.lineTo(x + dx * radius * 1.7, y + dy * radius * 1.7);
    }
  });
}

/** The outline of one pixel, where it is large enough to be seen. */
export function drawPixel(context, frame, pixel) {
  if (frame.scale < 4) return;
  const [x, y] = toCanvas(frame, pixel[0], pixel[1]);
  doubled(context, 1, () => context.rect(x, y, frame.scale, frame.scale));
}

/** A box, x, y, width, height in image pixels, with an optional name. */
export function drawBox(context, frame, box, name = "", dashed = false) {
  const [x, y] = toCanvas(frame, box[0], box[1]);
  context.setLineDash(dashed ? [7, 5] : []);
  doubled(context, 1.5, () => context.rect(x, y, box[2] * frame.scale, box[3] * frame.scale));
  context.setLineDash([]);
  if (name) drawName(context, name, x, y);
}

function drawName(context, name, x, y) {
  context.font = "600 13px system-ui, sans-serif";
  const width = context.measureText(name).width + 10;
  const top = Math.max(y - 20, 0);
  context.fillStyle = RIM;
  context.fillRect(x, top, width, 19);
  context.fillStyle = CORE;
  context.fillText(name, x + 5, top + 14);
}

/** A cross over the whole canvas at an image position, and small ones at earlier clicks. */
export function drawCross(context, frame, point, canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const [x, y] = toCanvas(frame, point[0], point[1]);
  context.globalAlpha = 0.75;
  doubled(context, 1, () => {
    context.moveTo(0, y);
    context.lineTo(width, y);
    context.moveTo(x, 0);
    context.lineTo(x, height);
  });
  context.globalAlpha = 1;
}

export function drawDot(context, frame, point) {
  const [x, y] = toCanvas(frame, point[0], point[1]);
  doubled(context, 2, () => context.arc(x, y, 4, 0, 2 * Math.PI));
}
