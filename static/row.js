// One task in the list. What it says is shown as text, never as HTML: it may contain anything.
import { describeDue, readTask, writeTask } from "./fields.js";
import { $, create, disclose, explain } from "./forms.js";
import { colorOf, isSame } from "./tags.js";

export class Row {
  item = $("#row").content.firstElementChild.cloneNode(true);
  box = $("input", this.item);
  save = (changes) => this.list.copy.update(this.task.id, changes);

  /** `list` has the copy, which is written to, and filters by a tag. */
  constructor(list) {
    const { item } = this;
    const buttons = item.querySelectorAll(".actions button");
    const [addTag, edit, remove] = buttons;
    const [tagForm, editForm] = item.querySelectorAll("form");
    Object.assign(this, { list, buttons, tagForm, edit, editForm, remove });
    $("label", editForm).after($(".details").cloneNode(true));
    item.onanimationend = () => item.classList.remove("news");
    this.box.onchange = () => list.copy.complete(this.task.id, this.box.checked);
    remove.onclick = () => this.setDeleted(!item.matches(".deleted"));

    const name = $("input", tagForm);
    const clear = () => (name.value = "");
    disclose(addTag, tagForm, clear, () => this.save({ tags: [...this.task.tags, { name: name.value.trim() }] }));
    disclose(edit, editForm, () => writeTask(editForm, this.task), (before) => {
      const changed = Object.entries(readTask(editForm)).filter(([name, value]) => value !== before[name]);
      if (changed.length) this.save(Object.fromEntries(changed)); // others may change the rest meanwhile
    });
  }

  /** Mark the task as deleted, which Undo can end for 7 seconds, or not. */
  setDeleted(isDeleted) {
    this.item.classList.toggle("deleted", isDeleted);
    this.remove.textContent = isDeleted ? "Undo" : "Delete";
    clearTimeout(this.timer);
    if (isDeleted) this.timer = setTimeout(() => this.finish(), 7_000);
    else this.list.render(); // it may be gone meanwhile
  }

  /** Delete the task now if it is marked so. */
  finish() {
    if (!this.item.matches("#tasks > .deleted")) return; // or it was somebody else's
    this.setDeleted(false);
    this.list.copy.remove(this.task.id);
  }

  /** A change was refused: show what was wrong with it, and what was typed. */
  explain(error, task) {
    if (!this.editForm.isConnected) this.edit.click();
    writeTask(this.editForm, task);
    explain(this.editForm, error);
  }

  /** Show a task; if it was changed elsewhere, let that be seen. */
  fill(task) {
    const { item, list } = this;
    const { text, isOver } = describeDue(task);
    const { rev, title, description, completed, priority, tags } = task;
    const looks = JSON.stringify([title, description, completed, priority, text, tags.map(({ name }) => name)]);
    if (this.looks !== looks && this.task && this.task.rev !== rev) item.classList.add("news");
    Object.assign(this, { task, looks });
    this.box.checked = completed;
    item.classList.toggle("high", priority === "high");
    item.classList.toggle("over", isOver);
    $("label span", item).textContent = title;
    for (const button of this.buttons) button.ariaDescription = title;
    $(".description", item).textContent = description;
    $("b", item).textContent = priority === "medium" ? "" : `${priority} priority`;
    $("time", item).textContent = text;
    showChips($(".chips", item), tags, (tag) => ({
      textContent: tag.name,
      ariaPressed: String(Boolean(list.tag && isSame(tag, list.tag))),
      onclick: () => list.pick(tag),
    }));
    showChips($(".chips", this.tagForm), tags, (tag) => ({
      textContent: `Remove ${tag.name}`,
      onclick: () => this.save({ tags: tags.filter((other) => other !== tag) }),
    }));
  }
}

/** Show a button for each tag. Those that are there are kept, because one may have the focus. */
function showChips(chips, tags, properties) {
  while (chips.children.length > tags.length) chips.lastChild.remove();
  for (const [index, tag] of tags.entries()) {
    const chip = chips.children[index] ?? chips.appendChild(create("button", { type: "button", dir: "auto" }));
    chip.style.setProperty("--tag", colorOf(tag));
    Object.assign(chip, properties(tag));
  }
}
