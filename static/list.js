// Which tasks the page shows, in which order, and where the focus is while that changes.
import { $, plural, quoted } from "./forms.js";
import { Row } from "./row.js";
import { isSame } from "./tags.js";

const [items, more, search, sort] = ["#tasks", "#more", "#search", "#sort"].map((id) => $(id));
const RANKS = { high: 0, medium: 1, low: 2 };
const collator = new Intl.Collator();
const moment = ({ due_date }) => (due_date ? Date.parse(due_date) : Number.MAX_VALUE);
const ORDERS = {
  Newest: () => 0, // as they come
  Due: (one, other) => moment(one) - moment(other),
  Priority: (one, other) => RANKS[one.priority] - RANKS[other.priority],
  Title: (one, other) => collator.compare(one.title, other.title),
};

/** Leave out what makes no difference to somebody who searches: case, accents, width. */
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

export class TaskList {
  tasks = [];
  user = null; // whose they are
  tag = null; // which the list is filtered by
  rows = new Map(); // by the tasks' ids
  #limit = 100;

  constructor() {
    sort.append(...Object.keys(ORDERS).map((name) => new Option(name)));
    for (const field of [search, sort]) field.oninput = () => this.render();
    items.addEventListener("close", () => this.render());
    more.onclick = () => { this.#limit += 100; this.render(); };
  }

  /** The tags in use, by name. */
  get tags() {
    const named = new Map(this.tasks.flatMap(({ tags }) => tags).map((tag) => [tag.name, tag]));
    return [...named.values()].sort((one, other) => collator.compare(one.name, other.name));
  }

  /** Filter by a tag, or no more if it is the same again. */
  pick(tag) {
    this.tag = this.tag && isSame(tag, this.tag) ? null : tag;
    this.render();
  }

  render() {
    const focused = document.activeElement;
    const item = focused.closest("li");
    const position = [...items.children].indexOf(item);
    const sought = fold(search.value.trim());
    this.tag &&= this.tags.find((tag) => isSame(tag, this.tag)); // it may have a new name, or be gone
    const found = this.tasks.filter(
      ({ title, description, tags }) =>
        (!this.tag || tags.some((tag) => isSame(tag, this.tag))) &&
        fold([title, description, ...tags.map(({ name }) => name)].join("\n")).includes(sought),
    );
    this.#arrange(found.sort(ORDERS[sort.value]).slice(0, this.#limit));

    const which = this.tag ? ` tagged ${quoted(this.tag.name)}` : "";
    const some = found.length ? `${found.length} of ${this.tasks.length}${which}` : `No match${which}`;
    $("#summary span").textContent = sought || which ? some : plural(this.tasks.length, "task");
    $("#none").hidden = this.tasks.length > 0;
    $("#rename-tag").hidden = !this.tags.some(({ id }) => id > 0);
    more.hidden = found.length <= this.#limit;
    if (focused !== document.body) this.#keepFocus(focused, item, position);
  }

  /** Let the list hold these tasks. While somebody is there, what is open stays, and what Undo can bring back. */
  #arrange(tasks) {
    const [ids, rows] = [new Set(this.tasks.map(({ id }) => id)), new Map()];
    for (const task of tasks) {
      const isIt = (row) => !row.task.rev && !ids.has(row.task.id) && row.task.title === task.title; // saved just now
      const row = this.rows.get(task.id) ?? [...this.rows.values()].find(isIt) ?? new Row(this);
      row.fill(task);
      rows.set(task.id, row);
    }
    for (const row of this.rows.values()) {
      if (row.task.user_id === this.user?.id && row.item.matches(".deleted, :has(form)")) rows.set(row.task.id, row);
      if (!rows.has(row.task.id)) row.item.remove();
    }
    this.rows = rows;
    for (const [index, { item }] of [...rows.values()].entries())
      if (items.children[index] !== item) items.insertBefore(item, items.children[index]);
  }

  /** Give the focus back to what had it and was moved, or to what is near if that is gone. */
  #keepFocus(focused, item, position) {
    if (focused.checkVisibility()) return focused.focus();
    const near = item && (item.isConnected ? item : (items.children[position] ?? items.lastElementChild));
    [...(near ?? $("#add")).querySelectorAll("input, button")].find((one) => one.checkVisibility()).focus();
  }
}
