// A task as the fields of a form hold it, and its due date in words.
const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const midnight = (moment) => new Date(moment).setHours(0, 0, 0, 0);

/** Split a moment into a day and a time where one is, as fields write them. So do Swedes. */
const local = (moment) => new Date(moment).toLocaleString("sv").padStart(19, "0").slice(0, 16).split(" ");

/** Read a task from a form. Throw what `explain` takes if there is a time without a day. */
export function readTask({ elements: { title, description, day, time, priority } }) {
  if (time.value && !day.value) throw { errors: [{ pointer: "#/due_date", detail: "Choose a day, too." }] };
  return {
    title: title.value.trim(),
    description: description.value.trim() || null,
    due_date: time.value ? new Date(`${day.value}T${time.value}`).toISOString() : day.value || null,
    priority: priority.value,
  };
}

/** Write a task into a form, and answer how it reads there. */
export function writeTask(form, { title, description, due_date, priority }) {
  const [day, time] = due_date?.includes("T") ? local(due_date) : [due_date];
  for (const [name, value] of Object.entries({ title, description, day, time, priority }))
    form.elements[name].value = value ?? "";
  return readTask(form);
}

/** Say when a task is due, and whether that is over. A day is that day wherever one is. */
export function describeDue({ due_date, completed }) {
  if (!due_date) return { text: "", isOver: false };
  const isDay = !due_date.includes("T");
  const moment = new Date(isDay ? `${due_date}T00:00` : due_date);
  const days = Math.round((midnight(moment) - midnight(Date.now())) / 86_400_000);
  const day = Math.abs(days) < 2 ? words.format(days, "day") : moment.toLocaleDateString([], { dateStyle: "medium" });
  const time = isDay ? "" : `, ${moment.toLocaleTimeString([], { timeStyle: "short" })}`;
  const isOver = !completed && (isDay ? days < 0 : moment < Date.now());
  return { text: `${isOver ? "overdue:" : "due"} ${day}${time}`, isOver };
}
