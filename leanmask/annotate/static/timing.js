// How long answers take. Pure but for the clock that is passed in.

const PAUSE_SECONDS = 60; // longer is an interruption
const KEPT = 50;

/** Measures the seconds between showing a question and its answer; time while the page is hidden does not count. */
export class Stopwatch {
  constructor(now = () => performance.now()) {
    this.now = now;
    this.recent = [];
    this.show();
  }

  show() {
    this.started = this.now();
    this.hiddenFor = 0;
    this.hiddenSince = null;
  }

  hide() {
    this.hiddenSince ??= this.now();
  }

  unhide() {
    if (this.hiddenSince !== null) this.hiddenFor += this.now() - this.hiddenSince;
    this.hiddenSince = null;
  }

  /** Seconds since `show`; remembered for the median. */
  lap() {
    this.unhide();
    const seconds = Math.max((this.now() - this.started - this.hiddenFor) / 1000, 0);
    if (seconds <= PAUSE_SECONDS) this.recent = [...this.recent, seconds].slice(-KEPT);
    return Math.min(seconds, 86400);
  }

  median() {
    return median(this.recent);
  }
}

/** The middle of a list of numbers, null of an empty one. */
export function median(numbers) {
  if (!numbers.length) return null;
  const sorted = [...numbers].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** Seconds as people say them: "40 s", "12 min", "3 h 20 min", "5 days". */
export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const minutes = Math.round(seconds / 60);
  if (seconds < 172800) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.round(seconds / 86400)} days`;
}
