// What this tab is called, so that the server lends units to it and not to its neighbour.

import { newId } from "./outbox.js";

/** A name of this tab that survives a reload; a duplicated tab gets one of its own. */
export async function tabName() {
  let name = sessionStorage.getItem("leanmask-tab") ?? newId();
  if (navigator.locks) {
    const mine = await new Promise((resolve) => {
      navigator.locks.request(`leanmask-${name}`, { ifAvailable: true }, (lock) => {
        resolve(lock !== null);
        return lock ? new Promise(() => {}) : undefined; // held as long as the tab lives
      });
    });
    if (!mine) name = newId();
  }
  sessionStorage.setItem("leanmask-tab", name);
  return name;
}
