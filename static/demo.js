// The page: signing up, in and out, adding tasks, and the sign that says how fresh the list is.
import { TodoClient } from "../client.js";
import { readTask, writeTask } from "./fields.js";
import { $, explain, onSubmit, plural, quoted } from "./forms.js";
import { TaskList } from "./list.js";
import { offerRenaming } from "./tags.js";

const EXAMPLES = [
  { title: "Buy milk", due_date: new Date(Date.now() + 86_400_000).toLocaleDateString("sv"), tags: [{ name: "shop" }] },
  { title: "Switch the network off, change something, and switch it on", tags: [{ name: "try this" }] },
  { title: "Open a second window and tick this off there", priority: "high", tags: [{ name: "try this" }] },
];

const [app, welcome, account, add, sign] = ["#app", "#welcome", "#account", "#add", "#sign"].map((id) => $(id));
const todo = new TodoClient(new URL("..", import.meta.url).href);
const list = new TaskList();
let unsent, signing;

/** Say how fresh the list is. */
function tell() {
  signing = null;
  sign.textContent = sign.dataset.state + (unsent ? `, ${plural(unsent, "change")} waiting` : "");
}

/** Show the copy as it is now. */
function show({ tasks, state, waiting }) {
  unsent = waiting;
  sign.dataset.state = state;
  signing ??= setTimeout(tell, state === "live" && waiting ? 500 : 0); // most wait less
  if (list.user?.id !== todo.user?.id) for (const form of [...document.forms]) form.reset(); // what one user typed
  Object.assign(list, { tasks, user: todo.user });
  list.render();
  const isIn = state !== "signed_out";
  if (app.hidden !== isIn && welcome.hidden === isIn) return;
  welcome.hidden = isIn;
  app.hidden = $("#sign-out").hidden = !isIn;
  $("input", isIn ? add : account).focus();
}

/** A change was refused for good, and is undone: give back what was typed, and say what was wrong. */
function refused(error, task = {}) {
  const row = task.rev && list.rows.get(task.id); // without a revision it was never saved
  if (error.status === 422 && row) return row.explain(error, task);
  if (!add.elements.title.value) writeTask(add, { priority: "medium", ...task });
  $("details", add).open ||= Boolean(task.description);
  const what = task.title ? quoted(task.title) : "A change";
  const why = error.code === "task_not_found" ? "The task was deleted elsewhere." : error.message;
  explain(add, { ...(add.elements.title.value === task.title && error), message: `${what} was not saved. ${why}` });
}

onSubmit(account, (method) => todo[method]({ email: $("#email").value, password: $("#password").value }));

onSubmit(add, () => {
  list.copy.create(readTask(add));
  [list.tag, $("#search").value] = [null, ""]; // else it might not show
  add.reset();
  add.elements.title.focus();
});

const finish = () => list.rows.forEach((row) => row.finish()); // there is no time left for Undo
addEventListener("pagehide", finish);
$("#sign-out").onclick = async () => {
  finish();
  await new Promise((resolve) => setTimeout(resolve, 300)); // what is on its way arrives meanwhile
  if (unsent && !confirm(`${plural(unsent, "change")} not sent yet. Sign out and lose them?`)) return;
  await todo.signOut().catch(() => explain(account, { message: "Signed out here only: sign in and out once online." }));
};

$("#none button").onclick = () => EXAMPLES.forEach((task) => list.copy.create(task));
$("#trouble button").onclick = () => dispatchEvent(new Event("online"));
list.copy = todo.live(show, { onError: refused });
offerRenaming(todo, list);
todo.resume();
