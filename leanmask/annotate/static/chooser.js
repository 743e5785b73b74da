// Choosing a class by typing.

/** The classes that fit what was typed: those that begin with it first, then those that contain it. */
export function matching(categories, typed) {
  const wanted = typed.trim().toLowerCase();
  const rank = (name) => (name.startsWith(wanted) ? 0 : name.includes(wanted) ? 1 : 2);
  return categories
    .map((category) => ({ category, rank: rank(category.name.toLowerCase()) }))
    .filter((item) => item.rank < 2)
    .sort((one, other) => one.rank - other.rank)
    .map((item) => item.category);
}

export class Chooser {
  constructor({ section, input, list, categories }) {
    Object.assign(this, { section, input, list, categories, last: null, chosen: 0, settle: null });
    input.addEventListener("input", () => this.show(0));
    input.addEventListener("keydown", (event) => this.key(event));
  }

  get open() {
    return this.settle !== null;
  }

  /** The id of a class; null when Escape was pressed. With one class alone there is nothing to ask. */
  choose(label, always) {
    if (this.categories.length === 1 && !always) return Promise.resolve(this.categories[0].id);
    this.section.querySelector("label").textContent = label;
    this.section.hidden = false;
    this.input.value = "";
    this.show(0);
    this.input.focus();
    return new Promise((resolve) => {
      this.settle = resolve;
    });
  }

  show(chosen) {
    this.matches = matching(this.categories, this.input.value);
    if (!this.input.value && this.last !== null) {
      this.matches.sort((one, other) => (other.id === this.last) - (one.id === this.last));
    }
    this.chosen = Math.min(Math.max(chosen, 0), this.matches.length - 1);
    this.list.replaceChildren(...this.matches.map((category, place) => this.entry(category, place)));
    this.input.setAttribute("aria-activedescendant", this.matches.length ? `class-${this.matches[this.chosen].id}` : "");
  }

  entry(category, place) {
    const item = document.createElement("li");
    item.id = `class-${category.id}`;
    item.textContent = category.name;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(place === this.chosen));
    item.addEventListener("click", () => this.finish(category.id));
    return item;
  }

  key(event) {
    if (event.isComposing) return;
    const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
    if (event.key in steps) this.show(this.chosen + steps[event.key]);
    else if (event.key === "Enter" && this.matches.length) this.finish(this.matches[this.chosen].id);
    else if (event.key === "Escape") this.finish(null);
    else {
      event.stopPropagation();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  finish(id) {
    const settle = this.settle;
    this.settle = null;
    this.section.hidden = true;
    if (id !== null) this.last = id;
    settle?.(id);
  }
}
