// Pixels of the image and pixels of a canvas: the only place where one becomes the other. Pure functions.
// A `view` is [x, y, width, height] in image pixels; a `frame` says where that view lies on a canvas.

/** The largest centred place for a view on a canvas of width x height: {x, y, scale}, canvas pixels per image pixel. */
export function fit(view, width, height) {
  const scale = Math.min(width / view[2], height / view[3]);
  return { view, scale, x: (width - view[2] * scale) / 2, y: (height - view[3] * scale) / 2 };
}

/** Continuous image coordinates to canvas coordinates. */
export function toCanvas(frame, x, y) {
  return [frame.x + (x - frame.view[0]) * frame.scale, frame.y + (y - frame.view[1]) * frame.scale];
}

/** Canvas coordinates to continuous image coordinates. */
export function toImage(frame, x, y) {
  return [frame.view[0] + (x - frame.x) / frame.scale, frame.view[1] + (y - frame.y) / frame.scale];
}

/** Image coordinates moved onto an image of width x height. */
export function onto(x, y, width, height) {
  return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
}

/** The view that shows a point enlarged: `reach` image pixels around it, square, moved onto the image. */
export function around(x, y, reach, width, height) {
  const side = Math.min(2 * reach, Math.max(width, height));
  const w = Math.min(Math.ceil(side), width);
  const h = Math.min(Math.ceil(side), height);
  const left = Math.min(Math.max(Math.round(x - w / 2), 0), width - w);
  const top = Math.min(Math.max(Math.round(y - h / 2), 0), height - h);
  return [left, top, w, h];
}

/** How many image pixels the zoom shows on each side of a point of an object: enough to see what the point lies on. */
export function reachOf(box) {
  return Math.min(Math.max(0.18 * Math.max(box[2], box[3]), 10), 160);
}

/** The box [x, y, width, height] that touches four extreme points. */
export function boxOf(points) {
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const x = Math.min(...xs);
  const y = Math.min(...ys);
  return [x, y, Math.max(...xs) - x, Math.max(...ys) - y];
}

/** Whether a picture of a view that is `pixels` wide shows every pixel of the image. */
export function isWhole(view, pixels) {
  return pixels >= view[2];
}
