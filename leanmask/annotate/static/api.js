// The server's interface.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch(path, { credentials: "same-origin", ...options });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

async function refusal(response) {
  const told = await response.json().catch(() => ({}));
  return new Refused(response.status, typeof told.detail === "string" ? told.detail : response.statusText);
}

export const state = () => ask("/api/state");
export const statistics = () => ask("/api/statistics");
export const claim = (annotator, tab, count) => ask("/api/claim", { annotator, tab, count });
export const answer = (annotator, tab, answers) => ask("/api/answers", { annotator, tab, answers });
export const undo = (annotator, tab, id) => ask("/api/undo", { annotator, tab, id });

const query = (view, longest) =>
  `x=${view[0]}&y=${view[1]}&width=${view[2]}&height=${view[3]}&longest=${longest}`;

export const pictureUrl = (picture, view, longest) => `/api/pictures/${picture}?${query(view, longest)}`;
export const maskUrl = (thing, view, longest) => `/api/masks/${thing}?${query(view, longest)}`;

/** A picture, decoded. Rejects with Refused, whose status says why, or with another error when the network failed. */
export async function load(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch (error) {
    // An image does not tell a server that is away from a picture that is damaged; asking once more does.
    const response = await fetch(url, { credentials: "same-origin" });
    throw response.ok ? error : await refusal(response);
  }
  return image;
}
