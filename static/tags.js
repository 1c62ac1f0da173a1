// Tags: their colors, and the form that renames them.
import { $, disclose } from "./forms.js";

const COLORS = ["#64748b", "#0f8a72", "#2563eb", "#7c3aed", "#c026d3", "#e11d48", "#ea580c", "#ca8a04", "#4d7c0f"];

/** Compare two tags. One that is about to be made has no id, or a negative one. */
export const isSame = (one, other) => (one.id > 0 && other.id > 0 ? one.id === other.id : one.name === other.name);

/** Answer a tag's color; one that has none always gets the same. */
export const colorOf = ({ id = 0, color }) => color ?? COLORS[Math.max(id, 0) % COLORS.length];

/** Let "Rename tag" rename the tags of a list. The changes come back as events. */
export function offerRenaming(todo, list) {
  const { which, name } = $("#rename").elements;
  const chosen = () => which.selectedOptions[0].tag;
  which.onchange = () => (name.value = chosen().name);
  const fill = () => {
    const option = (tag) => Object.assign(new Option(tag.name), { tag, selected: list.tag && isSame(tag, list.tag) });
    which.replaceChildren(...list.tags.filter(({ id }) => id > 0).map(option));
    which.onchange();
  };
  disclose($("#rename-tag"), $("#rename"), fill, () => todo.tags.update(chosen().id, { name: name.value.trim() }));
}
